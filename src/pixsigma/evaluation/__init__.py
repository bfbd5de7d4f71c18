"""How good drawings are: whether they show what was asked, and whether they are copies."""
