"""Image prompts: a picture as tokens beside the text, with keys and values of their own.

Ye et al. 2023, "IP-Adapter", section 3.2: cross-attention is decoupled, the queries of the text's
also ask the picture, and the answers are summed (eq. 5). Theirs reads what CLIP tells of a picture;
here blocks of its own read its latents, embedded as the base embeds them: nothing else is loaded.
"""

import torch
from torch import Tensor, nn

from pixsigma.config import TransformerConfig
from pixsigma.models.blocks import SelfAttention, split_heads
from pixsigma.models.embeddings import Mlp
from pixsigma.models.products import Linear
from pixsigma.models.transformer import PixArtTransformer

NUM_TOKENS, NUM_BLOCKS = 16, 4


class ReadingBlock(nn.Module):
    """Attention among all tokens and an MLP, each behind a norm (a ViT's block)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, num_heads, qk_norm=False, kv_ratio=1)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        x = x + self.attn(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x))


class ImagePrompt(nn.Module):
    """What makes tokens of a picture, and a layer's keys and values of them."""

    def __init__(
        self, config: TransformerConfig, num_tokens: int = NUM_TOKENS, num_blocks: int = NUM_BLOCKS
    ) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.num_attention_heads
        self.queries = nn.Parameter(torch.empty(num_tokens, width))
        self.blocks = nn.ModuleList(ReadingBlock(width, heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.links = nn.ModuleList(Linear(width, 2 * width) for _ in range(config.num_layers))

    @classmethod
    def fresh(cls, base: PixArtTransformer, num_tokens: int | None = None) -> "ImagePrompt":
        """What training begins with, beside `base`."""
        net = cls(base.config, num_tokens or NUM_TOKENS)
        net.init_weights()
        return net.to(base.device)

    def like(self) -> "ImagePrompt":
        """Another of the same outline."""
        return ImagePrompt(self.config, len(self.queries), len(self.blocks))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start values.

        every linear   xavier uniform, bias 0
        queries        N(0, 0.02)
        links          values of 0, so that nothing changes at first
        """
        nn.init.normal_(self.queries, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for link in self.links:
            nn.init.zeros_(link.get_parameter("weight")[self.config.width :])

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """A picture's tokens (B, N, D) to keys and values (B, A, K, D / A) for each layer."""
        x = torch.cat([self.queries.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x, grid)
        told = self.norm(x[:, : len(self.queries)])
        heads = self.config.num_attention_heads
        pairs = (link(told).chunk(2, dim=-1) for link in self.links)
        return [(split_heads(keys, heads), split_heads(values, heads)) for keys, values in pairs]
