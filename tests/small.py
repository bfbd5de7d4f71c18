"""Models small enough to make in a test, in every kind that weights come in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import pixsigma
from pixsigma import Components, NoiseSchedule, PixArtSigmaPipeline, get_sampler
from pixsigma.config import AutoencoderConfig, KVCompression, T5Config, TransformerConfig
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.text import T5TextEncoder, Tokenizer
from pixsigma.models.transformer import PixArtTransformer

SPIECE = Path(pixsigma.__file__).parent / "mini" / "tokenizer" / "spiece.model"

SIGMA = TransformerConfig(
    num_layers=2, num_attention_heads=1, caption_channels=16, sample_size=64, interpolation_scale=1
)
KINDS = {
    "sigma": SIGMA,
    "alpha": replace(
        SIGMA, sample_size=128, interpolation_scale=2.0, use_additional_conditions=True
    ),
    "compressed": replace(SIGMA, kv_compression=KVCompression(layers=(1,), ratio=2)),
    "normed": replace(SIGMA, qk_norm=True),
}
"""By what is special about them."""

VAE = AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1)
TEXT = T5Config(d_model=16, d_kv=8, num_heads=2, d_ff=24, num_layers=2)


def small_features(
    path: Path,
    width: int = SIGMA.caption_channels,
    *,
    num: int = 8,
    side: int = 4,
    spread: float = 0.0,
    several: bool = True,
) -> Path:
    """Pictures and captions of random features, as a run reads them; `width` is the text's.

    `spread` is the most that a latent deviates; with `several` some pictures have two captions.
    """
    torch.manual_seed(0)
    pairs = [[0, 1], [2, -1], [3, 4], [0, -1]] if several else [[0], [1], [2], [3]]
    tensors = {
        "mean": torch.randn(num, 4, side, side),
        "std": torch.rand(num, 4, side, side) * spread,
        "text": torch.randn(5, 6, width),
        "text_mask": torch.ones(5, 6, dtype=torch.bool),
        "captions": torch.tensor((pairs * num)[:num]),
        "null_text": torch.zeros(1, 6, width),
        "null_mask": torch.tensor([[True] + [False] * 5]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def small_transformer(config: TransformerConfig = SIGMA) -> PixArtTransformer:
    """Every weight random, biases and zero-initialised layers too, so that a swap shows."""
    torch.manual_seed(0)
    model = PixArtTransformer(config)
    model.load_state_dict({k: torch.randn_like(v) / 8 for k, v in model.state_dict().items()})
    return model.eval()


def small_autoencoder() -> KLAutoencoder:
    torch.manual_seed(1)
    return KLAutoencoder(VAE).eval()


def small_text_encoder(max_tokens: int = 30) -> T5TextEncoder:
    torch.manual_seed(2)
    encoder = T5Encoder(TEXT)
    encoder.load_state_dict({k: torch.randn_like(v) for k, v in encoder.state_dict().items()})
    return T5TextEncoder(Tokenizer(SPIECE, max_length=max_tokens), encoder.eval())


def small_pipeline(**changes: Any) -> PixArtSigmaPipeline:
    """All of the above; `changes` are fields of `Components`."""
    parts: dict[str, Any] = {
        "transformer": small_transformer(),
        "text_encoder": small_text_encoder(),
        "autoencoder": small_autoencoder(),
        "sampler": get_sampler("dpm++2m"),
        "schedule": NoiseSchedule(),
        "variant": "sigma",
        "max_tokens": 30,
        "resolution": 128,
        "name": "small",
    }
    return PixArtSigmaPipeline(Components(**(parts | changes)))


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    """Whether two networks have equal tensors under equal names."""
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
