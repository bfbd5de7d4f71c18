"""What the networks are: frozen values, free of torch, that files and presets speak of.

Field names are those of the published `config.json` files, so that a folder in diffusers layout is
read without translation; `weights/folder.py` does the reading and writing.
"""

from dataclasses import dataclass

from pixsigma.errors import InputError


@dataclass(frozen=True, kw_only=True)
class KVCompression:
    """Key-value token compression of PixArt-Σ, section 3.3: fewer keys in deep blocks."""

    layers: tuple[int, ...]
    """Indices of the blocks whose self-attention is compressed; the paper takes 14 to 27."""

    ratio: int = 2
    """Side of the square of tokens that becomes one: 2 keeps a quarter of keys and values."""

    def __post_init__(self) -> None:
        if self.ratio < 2:
            raise InputError(f"KV compression needs a ratio of 2 or more, got {self.ratio}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The diffusion transformer; the defaults are PixArt-Σ XL/2 at 1024px."""

    num_layers: int = 28
    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int = 8
    """Twice `in_channels` where the variance is learned (eps first, then the variance fraction)."""
    patch_size: int = 2
    sample_size: int = 128
    """Side of the latents that the model was trained on: pixels / 8."""
    caption_channels: int = 4096
    interpolation_scale: float = 2.0
    """Position interpolation: image side / 512 for Σ, so that positions always span [0, 32)."""
    use_additional_conditions: bool = False
    """Size and aspect-ratio embeddings of PixArt-α 1024."""
    qk_norm: bool = False
    kv_compression: KVCompression | None = None

    def __post_init__(self) -> None:
        if self.width % 4:
            raise InputError(f"2-D positions need a width divisible by 4, got {self.width}")
        if self.sample_size % self.patch_size:
            raise InputError(
                f"sample_size must be a multiple of patch_size {self.patch_size}, "
                f"got {self.sample_size}"
            )
        if self.use_additional_conditions and self.width % 3:
            raise InputError(f"micro-conditions need a width divisible by 3, got {self.width}")
        compressed = self.kv_compression.layers if self.kv_compression else ()
        if any(not 0 <= i < self.num_layers for i in compressed):
            raise InputError(
                f"KV compression names layers {compressed}, "
                f"the model has 0 to {self.num_layers - 1}"
            )

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def learns_variance(self) -> bool:
        """Whether the second half of the output channels is the variance fraction."""
        return self.out_channels == 2 * self.in_channels


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """The text encoder; the defaults are T5 v1.1 XXL."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The KL autoencoder; the defaults are the SDXL VAE."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.13025
    shift_factor: float | None = None
    sample_size: int = 1024
    force_upcast: bool = False
    """Whether the decoder overflows in fp16 and must run in fp32."""
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @property
    def factor(self) -> int:
        """Pixels a side for one latent."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The noise schedule that the network was trained on."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    """What the network predicts: `epsilon`, `sample` (x0) or `v_prediction`."""

    def __post_init__(self) -> None:
        known = ("epsilon", "sample", "v_prediction")
        if self.prediction_type not in known:
            raise InputError(
                f"prediction_type must be one of {', '.join(known)}, got {self.prediction_type!r}"
            )
