"""What the benchmarks share: one set of random weights in two libraries, and one step of each."""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from pixsigma.comparing import Task, in_diffusers, step_of_diffusers, step_of_ours
from pixsigma.config import TransformerConfig
from pixsigma.models.transformer import PixArtTransformer

__all__ = [
    "Peaks",
    "Task",
    "in_diffusers",
    "parser",
    "peak_memory",
    "positive",
    "random_transformer",
    "sheet",
    "step_of_diffusers",
    "step_of_ours",
    "useful_flops",
    "watched",
    "write_encoders",
    "write_t5",
]

OUT = Path(__file__).parent / "results"
"""Where figures go unless told otherwise; not under version control."""


def parser(about: str, *, rounds: int | None = None, quick: bool = True) -> argparse.ArgumentParser:
    """Flags that most benchmarks have; `rounds` are what is meant where none are given."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--out", type=Path, default=OUT, help="folder for JSON and plots")
    if rounds is not None:
        found.add_argument("--rounds", type=positive, default=rounds, help="counted rounds")
    if quick:
        found.add_argument("--quick", action="store_true", help="small sizes: whether it works")
    return found


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, got {number}")
    return number


def sheet(rows: Sequence[Sequence[Image.Image]], side: int) -> Image.Image:
    """Rows of pictures, each in this size, a little apart."""
    step = side + 4
    page = Image.new("RGB", (len(rows[0]) * step - 4, len(rows) * step - 4), "white")
    for j, row in enumerate(rows):
        for i, picture in enumerate(row):
            page.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (i * step, j * step))
    return page


def random_transformer(config: TransformerConfig, seed: int = 0) -> PixArtTransformer:
    """Weights that let every layer speak: a residual stream that grows slowly, as trained ones."""
    with torch.device("meta"):
        model = PixArtTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.02
        if name.endswith("scale_shift_table"):
            spread = config.width**-0.5
        state[name] = torch.randn(value.shape, generator=generator).mul_(spread)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def useful_flops(config: TransformerConfig, side: int, num_tokens: int) -> float:
    """Multiplications and additions that one guided step cannot do without."""
    width, n = config.width, (side // 8 // config.patch_size) ** 2
    ratio = config.kv_compression.ratio**2 if config.kv_compression else 1
    fewer = len(config.kv_compression.layers) if config.kv_compression else 0
    keys = n * (config.num_layers - fewer + fewer / ratio)
    # qkv, proj and the MLP in both halves of the batch; the text's query and proj in one
    linear = 2 * (4 + 8) * width**2 * n + 2 * width**2 * n
    cross = 2 * num_tokens * width * n
    attention = 2 * 2 * width * n * keys
    return 2 * (config.num_layers * (linear + cross) + attention)


class Peaks(NamedTuple):
    """The most that a process had in memory, in bytes."""

    all: int
    """With the pages of files that it has mapped and touched (VmHWM)."""
    own: int
    """Without them: what it has at this moment (RssAnon), or had at the most while watched."""


def peak_memory(process: int | str = "self") -> Peaks:
    """Of a process on Linux."""
    told = {}
    for line in Path(f"/proc/{process}/status").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssAnon"):
            told[name] = int(value.split()[0]) * 1024
    return Peaks(told["VmHWM"], told["RssAnon"])


def watched(process: Any, every: float = 0.05) -> Peaks:
    """Wait for a child (of `subprocess.Popen`) and tell its peaks."""
    found = Peaks(0, 0)
    while process.poll() is None:
        try:
            now = peak_memory(process.pid)
        except (OSError, KeyError):  # it has just ended
            break
        found = Peaks(max(found.all, now.all), max(found.own, now.own))
        time.sleep(every)
    process.wait()
    return found


def write_encoders(folder: Path, layers: int = 24) -> None:
    """T5-XXL in fp16 and in int8, random, as `float16` and `int8` of a folder, if not there."""
    from pixsigma.weights.text_int8 import save_int8_text

    write_t5(folder / "float16", layers)
    if not (folder / "int8" / "text_encoder" / "model.safetensors.index.json").is_file():
        save_int8_text(folder / "float16", folder / "int8")


def write_t5(folder: Path, layers: int = 24) -> None:
    """A folder with random weights shaped as T5-XXL in fp16, a file a layer, unless it is there."""
    from safetensors.torch import save_file

    import pixsigma
    from pixsigma.config import T5Config
    from pixsigma.models.t5 import T5Encoder
    from pixsigma.weights.config_files import t5_json
    from pixsigma.weights.files import Tensors
    from pixsigma.weights.keymaps import T5

    part = folder / "text_encoder"
    index = part / "model.safetensors.index.json"
    if index.is_file():
        return
    part.mkdir(parents=True, exist_ok=True)
    config = T5Config(num_layers=layers)
    with torch.device("meta"):
        specs = T5.to_theirs(Tensors.of(T5Encoder(config).state_dict())).specs
    room, need = shutil.disk_usage(folder).free, 2 * sum(s.num_elements for s in specs.values())
    if room < need + 10**9:
        raise SystemExit(f"{folder} has {room / 1e9:.0f} GB of room, too little")
    # numbers of one length, so that other layers cost no more than the writing
    noise = torch.randn(42 * 10**6, generator=torch.Generator().manual_seed(0)).half()
    owner: dict[str, str] = {}
    shards: dict[str, list[str]] = {}
    for name in specs:
        layer = name.split(".")[2] if name.startswith("encoder.block") else "rest"
        owner[name] = f"model-{layer}.safetensors"
        shards.setdefault(owner[name], []).append(name)
    for number, (file, names) in enumerate(shards.items()):
        tensors = {name: drawn(specs[name].shape, noise.roll(997 * number)) for name in names}
        save_file(tensors, str(part / file))
    (part / "config.json").write_text(json.dumps(t5_json(config)))
    index.write_text(json.dumps({"weight_map": owner}))
    mini = Path(pixsigma.__file__).parent / "mini" / "tokenizer"
    shutil.copytree(mini, folder / "tokenizer", dirs_exist_ok=True)


def drawn(shape: tuple[int, ...], noise: torch.Tensor) -> torch.Tensor:
    """Weights of this shape that neither blow up nor fade what goes through them."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float16)
    num = torch.Size(shape).numel()
    return noise.repeat(-(-num // len(noise)))[:num].view(shape) * shape[-1] ** -0.5
