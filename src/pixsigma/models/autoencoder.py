"""The KL autoencoder of SD 1.5, SDXL and PixArt: pictures to latents eight times smaller and back.

Kingma & Welling 2014 with the networks of Rombach et al. 2022 (LDM). A latent is the mean of the
posterior, shifted and scaled to about unit variance; nothing here draws a sample.
"""

import torch
from torch import Tensor, nn

from pixsigma.config import AutoencoderConfig
from pixsigma.errors import SizeError
from pixsigma.models.autoencoder_blocks import Decoder, Encoder
from pixsigma.shapes import Images, Latents

LOGVAR_RANGE = (-30.0, 20.0)


class KLAutoencoder(nn.Module):
    """Both halves; parameter names are those of the published diffusers folders."""

    in_one_piece = True
    """That it is brought to a device as a whole: strips read weights where no layer is called."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = (
            nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        )
        self.post_quant_conv = (
            nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None
        )

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in; inputs are cast to it."""
        return self.decoder.conv_in.weight.dtype

    def init_weights(self) -> None:
        """Draw all weights anew as torch does by default (after `to_empty`, say)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm):
                module.reset_parameters()

    def moments(self, images: Images) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation, each (B, C, H, W), neither shifted nor scaled.

        Raises SizeError where a side is no multiple of the factor.
        """
        self.check_size(images)
        h = self.encoder(images.to(self.dtype))
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        mean, logvar = h.chunk(2, dim=1)
        return mean, torch.exp(0.5 * logvar.clamp(*LOGVAR_RANGE))

    def encode(self, images: Images) -> Latents:
        """Scaled latents (B, C, H, W): the mean of the posterior.

        Raises SizeError where a side is no multiple of the factor.
        """
        mean, _ = self.moments(images)
        return (mean - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def decode(self, latents: Latents) -> Images:
        """Pictures (B, 3, height, width) in about [-1, 1], not clamped."""
        z = latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)
        z = z.to(self.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        images: Tensor = self.decoder(z)
        return images

    def check_size(self, images: Images) -> None:
        """Raise SizeError where a side is no multiple of the factor."""
        height, width = images.shape[-2:]
        factor = self.config.factor
        if height % factor or width % factor:
            raise SizeError(
                f"the autoencoder takes sides that are multiples of {factor}, "
                f"got {width}x{height}; crop or resize the picture first"
            )
