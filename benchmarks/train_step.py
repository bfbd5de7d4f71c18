"""Samples a second of our training step, against a plain loop on diffusers' transformer.

    python benchmarks/train_step.py [--quick] [--out benchmarks/train_step.json]

Both sides have the same shapes, dtype, weights, optimiser (AdamW) and batches of random features,
and run by turns in one process. The 12M model takes whole steps, XL/2 forward and backward with
checkpointing alone, at 256 px. Peak memory is that of the process while a side runs, less what it
held before. The GEMM peak is measured by square products of the same dtype.
"""

import argparse
import gc
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixsigma.config import TransformerConfig
from pixsigma.data.features import Batch
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.interfaces import TextFeatures
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.sections import LossSection
from pixsigma.training.step import loss_of_batch

SIZES: dict[str, dict[str, Any]] = {
    "12M": {"num_layers": 10, "heads": 4, "head": 64, "text": 256, "side": 16, "tokens": 40},
    "XL/2": {"num_layers": 28, "heads": 16, "head": 72, "text": 4096, "side": 32, "tokens": 300},
    "quick": {"num_layers": 2, "heads": 2, "head": 32, "text": 64, "side": 8, "tokens": 12},
}


def pair(size: dict[str, Any], device: torch.device) -> tuple[PixArtTransformer, nn.Module]:
    """Our network and diffusers', with the same shapes."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    ours = PixArtTransformer(
        TransformerConfig(
            num_layers=size["num_layers"],
            num_attention_heads=size["heads"],
            attention_head_dim=size["head"],
            caption_channels=size["text"],
            sample_size=size["side"],
            interpolation_scale=size["side"] / 64,
        )
    )
    ours.init_weights()
    theirs = PixArtTransformer2DModel(
        num_layers=size["num_layers"],
        num_attention_heads=size["heads"],
        attention_head_dim=size["head"],
        cross_attention_dim=size["heads"] * size["head"],
        caption_channels=size["text"],
        sample_size=size["side"],
        interpolation_scale=size["side"] / 64,
        use_additional_conditions=False,
    )
    return ours.to(device).train(), theirs.to(device).train()


def batch_of(size: dict[str, Any], num: int, device: torch.device) -> Batch:
    """Random latents and texts of every length up to the longest."""
    latents = torch.randn(num, 4, size["side"], size["side"])
    text = torch.randn(num, size["tokens"], size["text"])
    lengths = torch.linspace(1, size["tokens"], num).long()
    mask = torch.arange(size["tokens"]) < lengths[:, None]
    return Batch(latents, TextFeatures(text, mask)).to(device)


class Plain:
    """A loop as people write it: diffusers' transformer and scheduler, the published objective."""

    def __init__(self, model: nn.Module) -> None:
        from diffusers import DDPMScheduler

        self.model = model
        self.scheduler = DDPMScheduler(
            beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", num_train_timesteps=1000
        )

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the noise; the variance half gets no loss, as in their script."""
        x0 = batch.latents
        eps = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=x0.device)
        output = self.model(
            self.scheduler.add_noise(x0, eps, t),
            encoder_hidden_states=batch.text.embeddings,
            encoder_attention_mask=batch.text.mask,
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return nn.functional.mse_loss(output.chunk(2, dim=1)[0].float(), eps.float())


class Memory:
    """The most that the process, or the GPU, holds while the block runs, above its start."""

    def __enter__(self) -> "Memory":
        gc.collect()
        self.peak = 0.0
        self.before = self.held()
        self.running = True
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.watch = threading.Thread(target=self.look)
        self.watch.start()
        return self

    def look(self) -> None:
        """Keep the most, until told to stop."""
        while self.running:
            self.peak = max(self.peak, self.held() - self.before)
            time.sleep(0.005)

    @staticmethod
    def held() -> float:
        """GiB."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**30

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.watch.join()


def gemm_peak(dtype: torch.dtype, device: torch.device, side: int) -> float:
    """Products of this machine, in 10⁹ operations a second: the best of some."""
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        wait(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start) / 1e9)
    return best


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def operations(step: Callable[[], object]) -> float:
    """Of matrix products in one step, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def compare(name: str, rounds: int, num: int, update: bool, device: torch.device) -> dict[str, Any]:
    """Both sides by turns; seconds a step are the best of `rounds` of each."""
    size = SIZES[name]
    ours, theirs = pair(size, device)
    if not update:
        ours.recompute = True
        theirs.enable_gradient_checkpointing()
    else:
        for block in ours.blocks:
            if name != "quick":
                block.compile(dynamic=False)
    batch, schedule, rng = batch_of(size, num, device), NoiseSchedule(), torch.Generator()
    plain = Plain(theirs)
    losses = {
        "ours": lambda: loss_of_batch(ours, schedule, batch, LossSection(), rng).mean(),
        "diffusers": lambda: plain.loss(batch),
    }
    movers = {
        side: torch.optim.AdamW(model.parameters(), lr=1e-4)
        for side, model in (("ours", ours), ("diffusers", theirs))
    }

    def step(side: str) -> None:
        losses[side]().backward()
        if update:
            movers[side].step()
        movers[side].zero_grad(set_to_none=True)

    found: dict[str, Any] = {}
    for side in losses:
        step(side)  # compiled, and the optimiser's state made
        with Memory() as memory:
            step(side)
        found[side] = {"peak_gib": round(memory.peak, 3), "seconds": float("inf")}
    for _ in range(rounds):
        for side in losses:
            start = time.perf_counter()
            step(side)
            wait(device)
            best = min(found[side]["seconds"], time.perf_counter() - start)
            found[side]["seconds"] = best
    for side in losses:
        found[side]["samples_per_second"] = num / found[side]["seconds"]
    return found | {
        "batch": num,
        "parameters": sum(p.numel() for p in ours.parameters()),
        "ratio": found["diffusers"]["seconds"] / found["ours"]["seconds"],
        "gflop": operations(lambda: losses["diffusers"]().backward()) / 1e9,
    }


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = gemm_peak(torch.float32, device, 256 if arguments.quick else 2048)
    plans = [("12M", arguments.rounds, 16, True), ("XL/2", 2, 1, False)]
    if arguments.quick:
        plans = [("quick", 2, 2, True), ("quick", 1, 2, False)]
    results: dict[str, Any] = {"gemm_gflops": round(peak, 1), "device": str(device)}
    print(f"GEMM peak {peak:.0f} GFLOP/s on {device}")
    print("| model | step | side | pictures/s | of GEMM peak | peak GiB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, rounds, num, update in plans:
        kind = "whole" if update else "forward, backward, checkpointing"
        found = compare(name, rounds, num, update, device)
        results[f"{name}, {kind}"] = found
        for side in ("ours", "diffusers"):
            told = found[side]
            share = found["gflop"] / told["seconds"] / peak
            ratio = f"{found['ratio']:.2f}" if side == "ours" else "1"
            print(
                f"| {name} | {kind} | {side} | {told['samples_per_second']:.2f} | {share:.0%} "
                f"| {told['peak_gib']:.2f} | {ratio} |"
            )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
