"""Train mini's KL autoencoder from scratch on the pictures of `data.py`; the schedule is by time.

    python recipes/mini/autoencoder.py DATA OUT [--minutes 24] [--resume]
        [--init VAE [--decoder [--side 256] [--noise 0.2]]]

`--init` goes on from the weights of a folder that it wrote, with a schedule of its own. With
`--decoder` what pictures are in latents stays as it is, and so whatever was trained on them; the
decoder learns from whole pictures of 128 px and a quarter of the time from crops of those of 256,
or with `--side 256` from such crops and a quarter of the time from whole pictures of 256. With
`--noise` each picture's latents get noise of a deviation between 0 and that, so that what a
transformer leaves of it is not decoded as grain.
Writes OUT/checkpoint.pt every two minutes, OUT/log.txt, and at the end OUT/vae (diffusers layout),
OUT/reconstructions.png and OUT/READY. A run that was cut off goes on with `--resume` and the
options that it was begun with, but for the minutes; without it, a folder that holds a run is
refused.
On processors, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ set high spare most page faults.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines import read_lines
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixsigma.config import AutoencoderConfig
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.training.checkpoint import save_checkpoint
from pixsigma.training.optim import Muon
from pixsigma.weights.files import save_tensors, write_json
from pixsigma.weights.folder import read_autoencoder

CONFIG = AutoencoderConfig(
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    norm_num_groups=8,
    scaling_factor=1.0,
    sample_size=256,
)
SIZES = (64, 128, 256)
CROP, WHOLE = 64, 128
NUM_HELD_OUT = 64
CHECKPOINT, CHECKPOINT_SECONDS = "checkpoint.pt", 120.0
LONGEST_STEP = 10.0
"""Seconds; what is longer is a pause of the machine, and no part of the schedule."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one run is; written into its checkpoints."""

    minutes: float = 24.0
    batch: int = 12
    lr: float = 3e-3
    warmup: float = 0.02
    """Part of the time that the learning rate rises linearly."""
    kl: float = 5e-5
    """Weight of the KL divergence, per number of the latents, beside L1 per number of pixels."""
    ema: float = 0.995
    seed: int = 0
    decoder: bool = False
    """Whether the decoder alone is trained."""
    side: int = WHOLE
    """Pixels of the pictures that the decoder alone mostly learns from: 128 or 256."""
    noise: float = 0.0
    """Most deviation of noise on the latents that the decoder alone learns from."""


# Pictures


def pictures(paths: list[Path], size: int) -> Tensor:
    """(num, 3, size, size), uint8."""
    arrays = []
    for path in paths:
        picture = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        arrays.append(np.array(picture).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(arrays))


def read_paths(data: Path, seed: int) -> tuple[list[Path], list[Path]]:
    """Pictures for training, and pictures held out: the held-out things first, then others."""
    train = [data / row["path"] for row in read_lines(data / "captions.jsonl")]
    held = [data / row["path"] for row in read_lines(data / "held_out.jsonl")]
    order = np.random.default_rng(seed).permutation(len(train))
    more = max(0, NUM_HELD_OUT - len(held))
    return [train[i] for i in sorted(order[more:])], held + [train[i] for i in order[:more]]


def as_images(pixels: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


Pictures = dict[int, Tensor]
"""Every picture at every size, in memory."""


def read_pictures(paths: list[Path]) -> Pictures:
    """Decode and resize every file."""
    return {size: pictures(paths, size) for size in SIZES}


def training_batch(data: Pictures, step: int, options: Options) -> Tensor:
    """Crops of one side from pictures of all sizes; every fourth batch, whole pictures."""
    rng = np.random.default_rng((options.seed, step))
    if options.decoder:
        return decoder_batch(data, step, options, rng)
    if step % 4 == 3:
        whole = data[WHOLE]
        picked = whole[rng.integers(len(whole), size=max(1, options.batch // 4))]
        return as_images(flipped(picked, rng))
    crops = []
    for n in range(options.batch):
        size = SIZES[n % len(SIZES)]
        i = rng.integers(len(data[size]))
        top, left = rng.integers(size - CROP + 1, size=2)
        crops.append(data[size][i, :, top : top + CROP, left : left + CROP])
    return as_images(flipped(torch.stack(crops), rng))


def decoder_batch(data: Pictures, step: int, options: Options, rng: np.random.Generator) -> Tensor:
    """Crops of 128 px of pictures of the side that is drawn; every fourth batch is of 256 px.

    Where those are what is drawn they are whole, a quarter as many of four times the pixels.
    """
    rare = step % 4 == 3
    num, side = options.batch, WHOLE
    if rare and options.side > WHOLE:
        num, side = max(1, num // 4), options.side
    source = data[2 * WHOLE if rare else options.side]
    some = source[rng.integers(len(source), size=num)]
    top, left = rng.integers(source.shape[-1] - side + 1, size=2)
    return as_images(flipped(some[..., top : top + side, left : left + side], rng))


def flipped(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Each picture mirrored or not."""
    mirror = torch.from_numpy(rng.random(len(pixels)) < 0.5)
    return torch.where(mirror[:, None, None, None], pixels.flip(-1), pixels)


# Loss


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 of the pixels, of their gradients, and of the pictures at a half and a quarter."""
    error = decoded - images
    loss = error.abs().mean()
    loss = loss + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    for _ in range(2):
        error = F.avg_pool2d(error, 2)
        loss = loss + 0.5 * error.abs().mean()
    return loss


def training_loss(model: KLAutoencoder, images: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The whole loss, and the divergence alone."""
    with torch.set_grad_enabled(not options.decoder):
        mean, std = model.moments(images)
    latents = mean + std * torch.randn_like(std)
    if options.noise:
        latents += options.noise * torch.rand(len(mean), 1, 1, 1) * torch.randn_like(mean)
    decoded = model.decode(latents)
    divergence = 0.5 * (mean.square() + std.square() - 1).mean() - std.log().mean()
    return reconstruction_loss(decoded, images) + options.kl * divergence, divergence


# Optimiser


def build_optimizers(model: KLAutoencoder, options: Options) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside; Adam for norms, biases and the layers at both ends."""
    ends = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out", "quant")
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        (others if p.ndim < 2 or any(end in name for end in ends) else matrices).append(p)
    adam = torch.optim.AdamW(others, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=options.lr, as_adam=True), adam]


# Training


class Run:
    """A model, its average, its optimisers and how far they are."""

    def __init__(self, options: Options, out: Path, init: Path | None = None) -> None:
        torch.manual_seed(options.seed)
        self.options, self.out = options, out
        before = None if init is None else read_autoencoder(init, dtype=torch.float32)
        self.model = KLAutoencoder(CONFIG if before is None else before.config)
        if before is not None:
            self.model.load_state_dict(before.state_dict())
        if options.decoder:
            for name, weight in self.model.named_parameters():
                weight.requires_grad_(not name.startswith(("encoder.", "quant_conv.")))
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizers = build_optimizers(self.model, options)
        self.step, self.seconds = 0, 0.0

    def train(self, data: Pictures) -> Iterator[str]:
        """Train until the time is over; yields a line about every checkpoint's worth of time."""
        last, saved, losses = time.monotonic(), self.seconds, []
        while self.seconds < self.options.minutes * 60:
            losses.append(self._one_step(data))
            now = time.monotonic()
            self.seconds, last = self.seconds + min(now - last, LONGEST_STEP), now
            if self.seconds - saved >= CHECKPOINT_SECONDS or self.step == 20:
                self.save()
                loss, divergence = np.mean(losses, axis=0)
                yield f"loss {loss:.4f} kl {divergence:.2f}"
                saved, losses, last = self.seconds, [], time.monotonic()
        self.save()

    def _one_step(self, data: Pictures) -> tuple[float, float]:
        progress = self.seconds / (self.options.minutes * 60)
        rise = min(1.0, (progress + 1e-4) / self.options.warmup)
        lr = self.options.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        torch.manual_seed(self.options.seed + self.step)
        loss, divergence = training_loss(
            self.model, training_batch(data, self.step, self.options), self.options
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        self._follow()
        self.step += 1
        return loss.item(), divergence.item()

    def _follow(self) -> None:
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.parameters()),
            [p.detach() for p in self.model.parameters()],
            1 - decay,
        )

    def save(self) -> None:
        """Atomically: a run that is cut off leaves the checkpoint before or this one."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "options": asdict(self.options),
        }
        save_checkpoint(self.out / CHECKPOINT, state)

    def resume(self) -> None:
        """Go on from the checkpoint of `out`; raises SystemExit for one of other options.

        Only the minutes may be others.
        """
        state = torch.load(self.out / CHECKPOINT, weights_only=True)
        now = asdict(self.options) | {"minutes": state["options"]["minutes"]}
        if other := [f"{k} {v}" for k, v in state["options"].items() if now[k] != v]:
            raise SystemExit(f"{self.out} was begun with {', '.join(other)}: go on with the same")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


# After training


@torch.no_grad()
def coded(model: KLAutoencoder, images: Tensor) -> Tensor:
    """(num, 3, h, w) in [-1, 1], encoded and decoded, a few at a time."""
    return torch.cat([model.decode(model.encode(some)) for some in images.split(16)])


def reconstructed(model: KLAutoencoder, pixels: Tensor) -> Tensor:
    """(num, 3, h, w) in [0, 255], rounded as a saved picture is."""
    return ((coded(model, as_images(pixels)).clamp(-1, 1) + 1) * 127.5).round()


def psnr(pixels: Tensor, others: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, dB."""
    error = (pixels.float() - others).square().flatten(1).mean(1).clamp(min=1e-3)
    return float((10 * torch.log10(255**2 / error)).mean())


def quality(model: KLAutoencoder, held: Pictures) -> str:
    """PSNR at every size."""
    each = (f"{size}px {psnr(p, reconstructed(model, p)):.2f} dB" for size, p in held.items())
    return "PSNR " + ", ".join(each)


@torch.no_grad()
def all_means(model: KLAutoencoder, data: Pictures) -> Tensor:
    """(num, C, H, W): the unscaled latents of all pictures at the size of whole ones."""
    return torch.cat([model.moments(as_images(p))[0] for p in data[WHOLE].split(32)])


@torch.no_grad()
def standardize(model: KLAutoencoder, means: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 without a change to what is decoded.

    Both 1x1 convolutions take the change in: what one divides by, the other multiplies with.
    Without it a few channels would hold nearly all the variance that diffusion sees.
    """
    centre, spread = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    assert before is not None and before.bias is not None
    assert after is not None and after.bias is not None
    num = len(centre)
    before.weight[:num] /= spread[:, None, None, None]
    before.bias[:num] = (before.bias[:num] - centre) / spread
    before.bias[num:] -= 2 * spread.log()
    after.bias += after.weight[:, :, 0, 0] @ centre
    after.weight *= spread[None, :, None, None]


def write_folder(model: KLAutoencoder, config: AutoencoderConfig, folder: Path) -> None:
    """`config.json` and weights as diffusers' AutoencoderKL reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    levels = len(config.block_out_channels)
    published = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **asdict(config),
    }
    write_json(folder / "config.json", published)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_tensors(tensors, folder / "diffusion_pytorch_model.safetensors")


def write_sheet(model: KLAutoencoder, held: Pictures, path: Path, columns: int = 12) -> None:
    """Rows of originals over reconstructions: two of each size."""
    rows = []
    for pixels in held.values():
        for first in (0, len(pixels) - columns):
            some = pixels[first : first + columns]
            for row in (some, reconstructed(model, some).byte()):
                big = F.interpolate(row.float(), size=(WHOLE, WHOLE), mode="area").byte()
                rows.append(torch.cat(list(big), dim=-1))
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(path)


def finish(run: Run, data: Pictures, held: Pictures) -> str:
    """Standardise the latents, write the folder and the sheet; returns what READY says."""
    model = copy.deepcopy(run.average).eval()
    means = all_means(model, data)
    if not run.options.decoder:
        standardize(model, means)
    score = quality(model, held)
    write_folder(model, model.config, run.out / "vae")
    write_sheet(model, held, run.out / "reconstructions.png")
    parameters = sum(p.numel() for p in model.parameters())
    spreads = [round(float(s), 3) for s in means.std(dim=(0, 2, 3))]
    return (
        f"{score}; {run.step} steps, {run.seconds / 60:.1f} min, {parameters} parameters; "
        f"scaling_factor {model.config.scaling_factor}; deviations before standardising {spreads}"
    )


def main() -> None:
    """Parse, read, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=Options.minutes)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=Options.lr)
    parser.add_argument("--init", type=Path, help="folder of weights to go on from")
    parser.add_argument("--decoder", action="store_true", help="train it alone; needs --init")
    parser.add_argument("--side", type=int, choices=(WHOLE, 2 * WHOLE), default=Options.side)
    parser.add_argument("--noise", type=float, default=Options.noise)
    parser.add_argument("--batch", type=int, default=Options.batch)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    if args.decoder and args.init is None:
        parser.error("--decoder goes on from an autoencoder: say which with --init")
    if not args.decoder and (args.noise or args.side != WHOLE):
        parser.error("--side and --noise are for --decoder")
    begun = (args.out / CHECKPOINT).exists()
    if begun and not args.resume:
        parser.error(f"{args.out} holds a run: go on with --resume, or take another folder")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    names = ("minutes", "lr", "batch", "decoder", "side", "noise")
    asked = {name: getattr(args, name) for name in names}
    run = Run(Options(**asked), args.out, args.init)
    if args.resume and begun:
        run.resume()
    train, kept = read_paths(args.data, run.options.seed)
    data, held = read_pictures(train), read_pictures(kept)
    with (args.out / "log.txt").open("a") as log:

        def tell(line: str) -> None:
            line = f"{run.seconds / 60:5.1f} min, step {run.step}: {line}"
            print(line, flush=True)
            log.write(line + "\n")
            log.flush()

        for line in run.train(data):
            tell(f"{line}, {quality(run.average, {WHOLE: held[WHOLE]})}")
        done = finish(run, data, held)
        tell(done)
    (args.out / "READY").write_text(done + "\n")


if __name__ == "__main__":
    main()
