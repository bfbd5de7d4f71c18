"""The encoder and decoder of the KL autoencoder: residual convolutions around one attention.

Module names are those of the published state dicts (diffusers layout), so weights load as they are.
The shape is that of Esser et al. 2021 (VQGAN) as Rombach et al. 2022 (LDM, appendix G) use it.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from pixsigma.config import AutoencoderConfig

NORM_EPS = 1e-6


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the epsilon of the published weights, which is not torch's default."""
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """(B, in, h, w) to (B, out, h, w): norm, SiLU and convolution, twice, plus the input."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a new tensor; `x` is left alone."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return h + shortcut


class SpatialAttention(nn.Module):
    """(B, c, h, w) to itself: self-attention among all places, one head as wide as the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = group_norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        # The published names hold a list whose second entry is a dropout of zero.
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return a new tensor; `x` is left alone."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, h·w, c)
        q, k, v = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        h = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + h.transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """The bottom of encoder and decoder: residual block, attention if wanted, residual block."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) to itself."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        out: Tensor = self.resnets[1](x)
        return out


class Downsample(nn.Module):
    """(B, c, h, w) to (B, c, h/2, w/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Pad right and bottom only: the published weights expect the window at even places."""
        h: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return h


class Upsample(nn.Module):
    """(B, c, h, w) to (B, c, 2h, 2w): repeat each place, then smooth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Nearest neighbour twice a side, then the convolution."""
        h: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


class DownBlock(nn.Module):
    """Residual blocks at one resolution, then half of it (not after the last one)."""

    def __init__(self, widths: tuple[int, int], layers: int, groups: int, halve: bool) -> None:
        super().__init__()
        ins = (widths[0], *(widths[1] for _ in range(layers - 1)))
        self.resnets = nn.ModuleList(ResnetBlock(c, widths[1], groups) for c in ins)
        self.downsamplers = nn.ModuleList([Downsample(widths[1])] if halve else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, widths[0], h, w) to (B, widths[1], h/2, w/2)."""
        for resnet in self.resnets:
            x = resnet(x)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks at one resolution, then twice of it (not after the last one)."""

    def __init__(self, widths: tuple[int, int], layers: int, groups: int, double: bool) -> None:
        super().__init__()
        ins = (widths[0], *(widths[1] for _ in range(layers - 1)))
        self.resnets = nn.ModuleList(ResnetBlock(c, widths[1], groups) for c in ins)
        self.upsamplers = nn.ModuleList([Upsample(widths[1])] if double else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, widths[0], h, w) to (B, widths[1], 2h, 2w)."""
        for resnet in self.resnets:
            x = resnet(x)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class Encoder(nn.Module):
    """(B, 3, height, width) to (B, 2C, H, W): mean and log-variance, before `quant_conv`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock((widths[max(i - 1, 0)], width), config.layers_per_block, groups, i < last)
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Mean first, log-variance second along the channels."""
        h = self.conv_in(images)
        for block in self.down_blocks:
            h = block(h)
        moments: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))
        return moments


class Decoder(nn.Module):
    """(B, C, H, W) to (B, 3, height, width): the encoder backwards, one residual block deeper."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock((widths[max(i - 1, 0)], width), config.layers_per_block + 1, groups, i < last)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures in about [-1, 1]."""
        h = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            h = block(h)
        images: Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return images
