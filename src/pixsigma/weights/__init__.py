"""From files to networks and back."""
