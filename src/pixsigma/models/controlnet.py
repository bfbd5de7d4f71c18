"""ControlNet-Transformer: a copy of the first blocks reads a hint and adds to the base's tokens.

Chen et al. 2024, "PixArt-δ", section 4. Names of weights are those of the authors' `.pth`
(`ControlPixArtHalf` in their `pixart_controlnet.py`): `controlnet.I.copied_block.…`,
`controlnet.I.after_proj.…` and `controlnet.0.before_proj.…`, so those load without translation.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from pixsigma.config import TransformerConfig
from pixsigma.errors import InputError
from pixsigma.models.blocks import Block, Words
from pixsigma.models.transformer import Caption, PixArtTransformer, block_of

NUM_COPIED = 13
"""Blocks that the published design copies, of 28."""


class ControlBlock(nn.Module):
    """A copied block and the links that join it to the base, zero at first."""

    def __init__(self, block: Block, width: int, first: bool) -> None:
        super().__init__()
        self.copied_block = block
        self.before_proj = _zero_linear(width) if first else None
        self.after_proj = _zero_linear(width)


class ControlNet(nn.Module):
    """The copy, for one kind of hint."""

    def __init__(self, config: TransformerConfig, num_copied: int | None = None) -> None:
        """Blocks as the first ones of a base of this config: 13, or half of a smaller network.

        Raises InputError where a copy would have no block of the base behind it.
        """
        super().__init__()
        num = min(NUM_COPIED, config.num_layers // 2) if num_copied is None else num_copied
        if not 1 <= num < config.num_layers:
            raise InputError(
                f"a control copies 1 to {config.num_layers - 1} blocks of this network, got {num}"
            )
        self.config = config
        self.controlnet = nn.ModuleList(
            ControlBlock(block_of(config, i), config.width, i == 0) for i in range(num)
        )

    @classmethod
    def copy_of(cls, base: PixArtTransformer, num_copied: int | None = None) -> "ControlNet":
        """The first blocks of `base` with links of zero: what training begins with."""
        net = cls(base.config, num_copied)
        for copy, block in zip(net.copies, base.blocks, strict=False):
            copy.copied_block.load_state_dict(block.state_dict())
        return net.to(base.device)

    def like(self) -> "ControlNet":
        """Another of the same outline."""
        return ControlNet(self.config, len(self.controlnet))

    @property
    def copies(self) -> list[ControlBlock]:
        """The blocks, in order."""
        return [each for each in self.controlnet if isinstance(each, ControlBlock)]

    def read(self, text: Tensor, mask: Tensor | None) -> Caption:
        """Embedded texts (B, L, D) and mask (B, 1, 1, L) as the copies read them."""
        return tuple(each.copied_block.cross_attn.read(text, mask) for each in self.copies)

    def forward(
        self,
        x: Tensor,
        hint: Tensor,
        t0: Tensor,
        texts: Sequence[Caption],
        grid: tuple[int, int],
    ) -> Iterator[Tensor]:
        """What is added to the inputs of the base's blocks 1, 2, …, (B, N, D) each.

        x (B, N, D) left block 0 of the base; hint (B, N, D) are the hint's tokens.
        """
        c = hint
        for i, each in enumerate(self.copies):
            if each.before_proj is not None:
                c = x + each.before_proj(c)
            words: list[Words] = [text[i] for text in texts]
            c = each.copied_block(c, t0, words, grid)
            yield each.after_proj(c)


def _zero_linear(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
