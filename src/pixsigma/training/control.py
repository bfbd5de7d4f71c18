"""A ControlNet or an image prompt in training: beside the frozen model the one part that learns."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pixsigma.data.features import Batch, Features
from pixsigma.errors import MismatchError
from pixsigma.hints import PICTURE
from pixsigma.interfaces import Denoiser
from pixsigma.models.blocks import Block
from pixsigma.models.controlled import Control, Controlled, Network
from pixsigma.models.controlnet import ControlNet
from pixsigma.models.image_prompt import ImagePrompt
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.shapes import Latents, Timesteps
from pixsigma.training.sections import ControlSection
from pixsigma.weights.build import Part, resolve
from pixsigma.weights.controls import save_control
from pixsigma.weights.folder import open_transformer


def beginning(base: PixArtTransformer, section: ControlSection) -> Network:
    """What a run begins with; raises InputError for more copies than blocks."""
    if section.kind == PICTURE:
        return ImagePrompt.fresh(base, section.num_tokens)
    return ControlNet.copy_of(base, section.num_copied)


class Following(nn.Module):
    """A model and its copy, or its image prompt, as one network; the model stays as it is."""

    def __init__(self, base: PixArtTransformer, section: ControlSection) -> None:
        """Raises InputError for more copies than blocks."""
        super().__init__()
        self.base = base.requires_grad_(False)
        self.copy = beginning(base, section).requires_grad_(True)
        self.config = base.config

    def forward(
        self, x: Latents, t: Timesteps, text: Tensor, mask: Tensor | None, hint: Latents
    ) -> Tensor:
        """As the model's, following `hint` (B, C, H, W)."""
        network = Controlled(self.base, [Control(self.copy, hint)])
        return network(x, network.embed(t), [network.read(text, mask, leading=True)])

    @property
    def blocks(self) -> list[Block]:
        """Of both."""
        return [block for block in self.modules() if isinstance(block, Block)]

    @property
    def recompute(self) -> bool:
        """As the model has it; copies are always kept."""
        return self.base.recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self.base.recompute = value


def following(network: nn.Module, batch: Batch) -> Denoiser:
    """The network with the hints of a batch bound, where it takes any."""
    if batch.hint is None:
        return network

    def hinted(x: Latents, t: Timesteps, text: Tensor, mask: Tensor | None = None) -> Tensor:
        return network(x, t, text, mask, batch.hint)

    return hinted


def refuse_hints(data: Features, folder: Path, section: ControlSection | None) -> None:
    """Raise MismatchError where features have not the hints that a run follows."""
    asked = None if section is None else section.kind
    if asked is not None and data.hint_kind != asked:
        raise MismatchError(
            f"control.kind is {asked}, {folder} has {data.hint_kind or 'no'} hints: prepare the "
            f"pictures with --hints {asked}"
        )


def save_copy(
    weights: dict[str, Tensor], model: Following, folder: Path, section: ControlSection, base: str
) -> Path:
    """Write `folder/controlnet.safetensors`; `base` is the model that it is for (as `--model`).

    `weights` are those of `Following` that are trained. Raises OutputError.
    """
    own = {key.removeprefix("copy."): value for key, value in weights.items()}
    parts: tuple[Part, ...] = ("transformer",)
    variant = open_transformer(resolve(base, parts)).detected.variant
    return save_control(own, model.base, folder, kind=section.kind, variant=variant)


def averaged(model: Following, weights: dict[str, Tensor]) -> Following:
    """The same with these weights in the copy; the model is shared."""
    with torch.device("meta"):
        copy = model.copy.like()
    own = {key.removeprefix("copy."): value for key, value in weights.items()}
    copy.load_state_dict(own, assign=True)
    found = Following.__new__(Following)
    nn.Module.__init__(found)
    found.base, found.copy, found.config = model.base, copy.requires_grad_(False), model.config
    return found.eval()
