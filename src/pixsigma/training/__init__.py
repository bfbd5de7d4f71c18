"""Training: the step and the run."""
