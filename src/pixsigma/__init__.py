"""PixArt-Σ."""
