"""What training reads: pictures and captions, encoded once."""
