"""What the benchmarks share: one set of random weights in two libraries, and one step of each."""

import argparse
from pathlib import Path

import torch

from pixsigma.comparing import Task, in_diffusers, step_of_diffusers, step_of_ours
from pixsigma.config import TransformerConfig
from pixsigma.models.transformer import PixArtTransformer

__all__ = [
    "Task",
    "in_diffusers",
    "parser",
    "random_transformer",
    "step_of_diffusers",
    "step_of_ours",
    "useful_flops",
]

OUT = Path(__file__).parent / "results"
"""Where figures go unless told otherwise; not under version control."""


def parser(about: str) -> argparse.ArgumentParser:
    """Flags that every benchmark has."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--out", type=Path, default=OUT, help="folder for JSON and plots")
    found.add_argument("--rounds", type=int, default=5, help="counted rounds")
    found.add_argument("--quick", action="store_true", help="small sizes: whether it works")
    return found


def random_transformer(config: TransformerConfig, seed: int = 0) -> PixArtTransformer:
    """Weights that let every layer speak: a residual stream that grows slowly, as trained ones."""
    with torch.device("meta"):
        model = PixArtTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.02
        if name.endswith("scale_shift_table"):
            spread = config.width**-0.5
        state[name] = torch.randn(value.shape, generator=generator).mul_(spread)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def useful_flops(config: TransformerConfig, side: int, num_tokens: int) -> float:
    """Multiplications and additions that one guided step cannot do without."""
    width, n = config.width, (side // 8 // config.patch_size) ** 2
    ratio = config.kv_compression.ratio**2 if config.kv_compression else 1
    fewer = len(config.kv_compression.layers) if config.kv_compression else 0
    keys = n * (config.num_layers - fewer + fewer / ratio)
    # qkv, proj and the MLP in both halves of the batch; the text's query and proj in one
    linear = 2 * (4 + 8) * width**2 * n + 2 * width**2 * n
    cross = 2 * num_tokens * width * n
    attention = 2 * 2 * width * n * keys
    return 2 * (config.num_layers * (linear + cross) + attention)
