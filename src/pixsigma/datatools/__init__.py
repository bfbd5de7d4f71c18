"""Pictures and captions to features: look at them, encode them, say what they are."""
