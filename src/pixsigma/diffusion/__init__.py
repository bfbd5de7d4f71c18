"""The diffusion algebra: tensors and callables; it knows no network."""
