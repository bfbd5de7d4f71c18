"""Pictures and captions encoded once: latents as mean and deviation, text as T5 states."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pixsigma.errors import MismatchError, MissingWeightsError
from pixsigma.interfaces import TextFeatures
from pixsigma.shapes import Latents


@dataclass(frozen=True)
class Batch:
    """Latents and the captions that tell them."""

    latents: Latents
    text: TextFeatures
    mask: Tensor | None = None
    """(B, 1, H, W), how much each place counts in [0, 1]; None: all alike."""
    hint: Latents | None = None
    """What a ControlNet follows; None where none is trained."""

    def to(self, device: torch.device) -> "Batch":
        """All of it on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        hint = None if self.hint is None else self.hint.to(device)
        return Batch(self.latents.to(device), self.text.to(device), mask, hint)


class Features(Protocol):
    """What a run reads: rows in buckets, batches of rows of one bucket."""

    def __len__(self) -> int:
        """M, the number of pictures."""
        ...

    @property
    def bucket_of(self) -> Tensor:
        """(M,) int64, an index of `latent_shapes` for each picture."""
        ...

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of each bucket."""
        ...

    @property
    def text_width(self) -> int:
        """E, the features of a token."""
        ...

    @property
    def masked(self) -> bool:
        """Whether batches come with masks."""
        ...

    @property
    def hint_kind(self) -> str | None:
        """What the hints of batches are, such as edges; None where there are none."""
        ...

    @property
    def null_text(self) -> Tensor:
        """(1, L, E), the empty caption."""
        ...

    @property
    def null_mask(self) -> Tensor:
        """(1, L), bool."""
        ...

    def batch(self, rows: Tensor, drop_caption: float, rng: torch.Generator) -> Batch:
        """Draw latents and one caption for each of `rows`; some captions become the empty one."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """M pictures of one size and their captions, whole in memory.

    A file holds: `mean` and `std` (M, C, H, W), scaled as the transformer sees latents; `text`
    (T, L, E) and `text_mask` (T, L), one row a caption; `captions` (M, Q) int64, rows of `text`
    for each picture, -1 where it has fewer than Q; `null_text` and `null_mask`, the empty caption;
    and it may hold `picture_mask` (M, 1, H, W) in [0, 1], and `hint` (M, C, H, W), latents of what
    a ControlNet follows, whose kind the metadata tells as `hint`.
    """

    mean: Tensor
    std: Tensor
    text: Tensor
    text_mask: Tensor
    captions: Tensor
    null_text: Tensor
    null_mask: Tensor
    picture_mask: Tensor | None = None
    hint: Tensor | None = None
    hint_kind: str | None = None

    @staticmethod
    def load(path: Path) -> "FeatureSet":
        """Read a file that `prepare` wrote.

        Raises MissingWeightsError or MismatchError.
        """
        if not path.is_file():
            raise MissingWeightsError(f"no features at {path}: prepare the pictures first")
        tensors = load_file(path)
        optional = {"picture_mask", "hint"}
        needed = set(FeatureSet.__dataclass_fields__) - optional - {"hint_kind"}
        if missing := sorted(needed - tensors.keys()):
            raise MismatchError(f"{path} is no feature file: it lacks {', '.join(missing)}")
        there = {name: tensors[name] for name in needed | (optional & tensors.keys())}
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("hint")
        return FeatureSet(**there, hint_kind=kind if "hint" in there else None)

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def bucket_of(self) -> Tensor:
        """(M,) zeros: there is one bucket."""
        return torch.zeros(len(self), dtype=torch.int64)

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of the one bucket."""
        channels, height, width = self.mean.shape[1:]
        return [(channels, height, width)]

    @property
    def masked(self) -> bool:
        """Whether the file holds masks."""
        return self.picture_mask is not None

    @property
    def text_width(self) -> int:
        """E, the features of a token."""
        return self.text.shape[-1]

    def batch(self, rows: Tensor, drop_caption: float, rng: torch.Generator) -> Batch:
        """Draw latents and one caption for each of `rows`; some captions become the empty one."""
        mean, std = self.mean[rows].float(), self.std[rows].float()
        latents = mean + std * torch.randn(mean.shape, generator=rng)
        counts = (self.captions[rows] >= 0).sum(dim=1)
        pick = (torch.rand(len(rows), generator=rng) * counts).long()
        text_rows = self.captions[rows, pick]
        dropped = torch.rand(len(rows), generator=rng) < drop_caption
        text = torch.where(dropped[:, None, None], self.null_text, self.text[text_rows])
        mask = torch.where(dropped[:, None], self.null_mask, self.text_mask[text_rows])
        pictured = None if self.picture_mask is None else self.picture_mask[rows].float()
        hint = None if self.hint is None else self.hint[rows].float()
        return Batch(latents, TextFeatures(text.float(), mask), pictured, hint)
