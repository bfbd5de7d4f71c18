"""Which file of a component's folder holds the weights."""

from dataclasses import dataclass
from pathlib import Path

from pixsigma.errors import MissingWeightsError

STEMS = {
    "transformer": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
}
"""Part to its stems, as safetensors and as pickle."""


@dataclass(frozen=True, kw_only=True)
class FileChoice:
    """Which of several copies of the weights is wanted."""

    variant: str | None = None
    """A copy in another precision: `fp16` for `model.fp16.safetensors`."""
    use_safetensors: bool | None = None
    """Only safetensors, only pickles, or (None) safetensors where there are some."""
    offline: bool = False
    """Ask the hub for nothing that is not on this machine."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """In the order in which they are tried."""
        both = (".safetensors", ".bin")
        return both if self.use_safetensors is None else both[not self.use_safetensors :][:1]

    def names(self, part: str, suffix: str) -> tuple[str, ...]:
        """File names that the weights of a part can have: whole, or the index of its shards."""
        stem = STEMS[part][suffix != ".safetensors"]
        dotted = f".{self.variant}" if self.variant else ""
        return f"{stem}{dotted}{suffix}", f"{stem}{suffix}.index{dotted}.json"

    def patterns(self, part: str, suffix: str) -> tuple[str, ...]:
        """Hub patterns of one part: its weights and nothing else."""
        stem = STEMS[part][suffix != ".safetensors"]
        dotted = f".{self.variant}" if self.variant else ""
        # Shards put the variant before the numbers, after them in older files.
        shards = {f"{stem}{dotted}-*-of-*{suffix}", f"{stem}-*-of-*{dotted}{suffix}"}
        return tuple(f"{part}/{name}" for name in (*self.names(part, suffix), *sorted(shards)))


def find_weights(folder: Path, part: str, choice: FileChoice | None = None) -> Path:
    """The weights file (or index) in `folder`; MissingWeightsError tells what is there instead."""
    choice = choice or FileChoice()
    names = [name for suffix in choice.suffixes for name in choice.names(part, suffix)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingWeightsError(f"{folder} must have one of {', '.join(names)}; {_instead(folder)}")


def _instead(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    weights = sorted(
        p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth")
    )
    if not weights:
        return "it has no weights"
    return f"it has {', '.join(weights[:6])}: choose by variant= (fp16, say) and use_safetensors="
