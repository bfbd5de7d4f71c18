"""Begin with pictures of twice the side and the same number of tokens: patches of 4 for 2.

    python recipes/mini/coarser.py TRANSFORMER FEATURES OUT

TRANSFORMER is a folder whose patches are 2 latents wide, FEATURES what `features.py` made of
pictures of twice its side. In OUT a token covers as much of a picture as before, so that all that
the blocks know of where things are holds; what is new is how a patch of 4 x 4 latents enters and
leaves. Its four means enter as four latents did. Differences within a mean have a lane of their own
from the way in to the way out, in those of a token's numbers that are needed least, for blocks
drown them anywhere else; the last modulation weighs them by the noise, and the way out is fitted by
least squares. Means of four latents have half the noise, so a time is read as the earlier one of
half the ratio of noise to picture.
"""

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pixsigma.config import ScheduleConfig
from pixsigma.data.features import Batch, Features
from pixsigma.data.shards import open_features
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.step import draw_timesteps
from pixsigma.weights.folder import read_transformer, save_transformer

Network: TypeAlias = Any
"""A PixArtTransformer, of which torch's types tell no part."""
SCHEDULE = NoiseSchedule(ScheduleConfig())
MEANS_TIMES = 1.7
"""What means are multiplied by: they vary less than latents, by half where all is noise."""
IN_LANE = 2.0
"""What differences are multiplied by; positions are added to them."""
STEPS, LR = 3000, 1e-3
PICTURES, FEW, ROUNDS, SHIFT = 256, 24, 4, 2.0
RIDGE = 1e-3


def earlier() -> Tensor:
    """For each timestep the one that has half its ratio of noise to picture."""
    times = range(SCHEDULE.config.num_train_timesteps)
    return torch.tensor([SCHEDULE.timestep_of(SCHEDULE.ratio_at(t) / 2) for t in times])


def learn_times(model: Network) -> float:
    """Read times as the earlier ones were read; returns the relative error."""
    times = torch.arange(SCHEDULE.config.num_train_timesteps).float()
    with torch.no_grad():
        wanted = model.t_embedder(earlier().float())
    optimizer = torch.optim.Adam(model.t_embedder.parameters(), lr=LR)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / STEPS)
        loss = (model.t_embedder(times) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((loss.detach() / wanted.square().mean()).sqrt())


def quadrupled(x: Tensor, rows: int, columns: int) -> Tensor:
    """Each entry four times, as a square of two axes."""
    return x.repeat_interleave(2, rows).repeat_interleave(2, columns)


def differences(channels: int) -> Tensor:
    """(12 C, C, 4, 4): orthonormal patches whose means of 2 x 2 are 0 (Haar)."""
    haar = torch.tensor([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2
    found = torch.zeros(channels, 2, 2, 3, channels, 4, 4)
    for c in range(channels):
        for i in range(2):
            for j in range(2):
                found[c, i, j, :, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = haar
    return found.flatten(0, 3)


def noised(data: Features, num: int, seed: int) -> tuple[Tensor, Tensor, Batch, Tensor]:
    """Noised latents (num, C, H, W), their times, what they are of, and the v that is asked."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data.bucket_of), generator=rng)[:num]
    batch = data.batch(rows, 0.0, rng)
    x0 = batch.latents
    t = draw_timesteps(len(x0), SCHEDULE, "stratified", rng, SHIFT)
    eps = torch.randn(x0.shape, generator=rng)
    return SCHEDULE.add_noise(x0, eps, t), t, batch, SCHEDULE.add_noise(eps, -x0, t)


def patches(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B · tokens, C, 4, 4), row by row."""
    cut = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))  # (B, C, h, 4, w, 4)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def inputs_of(layer: Any, call: Callable[[], object]) -> Tensor:
    """What enters a layer (N, D) where something is called."""
    found: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    call()
    hook.remove()
    return found[0].flatten(0, -2)


@torch.no_grad()
def widen(model: Network, weaker: PixArtTransformer, data: Features) -> None:
    """Let patches of 4 x 4 enter and leave."""
    enters, leaves = model.x_embedder.proj, model.final_layer.linear
    means = weaker.x_embedder.proj.weight
    enters.weight.copy_(MEANS_TIMES * quadrupled(means, 2, 3) / 4)
    for new, old in zip(leaves.parameters(), weaker.final_layer.linear.parameters(), strict=True):
        new.copy_(quadrupled(old.unflatten(0, (2, 2, -1)), 0, 1).flatten(0, 2))
    within = differences(model.config.in_channels)
    lane = needed(model, data).argsort()[: len(within)]
    clear(model, lane)
    enters.weight[lane], enters.bias[lane] = IN_LANE * within, 0.0
    latents = noised(data, PICTURES, seed=0)[2].latents
    variance = float(torch.einsum("kcij,ncij->nk", within, patches(latents)).var())
    weigh(model, lane, variance)
    leave(model, data)


@torch.no_grad()
def needed(model: Network, data: Features) -> Tensor:
    """(D,): how far the answer moves where no block writes or reads one of a token's numbers."""
    x, t, batch, _ = noised(data, FEW, seed=0)

    def answer() -> Tensor:
        told = model(x, t.float(), batch.text.embeddings, batch.text.mask)
        return avg_pool2d(told[:, : x.shape[1]], 2)

    kept = {name: value.clone() for name, value in model.state_dict().items()}
    whole, moved = answer(), []
    for number in range(model.config.width):
        clear(model, torch.tensor([number]))
        model.x_embedder.proj.weight[number] = 0.0
        moved.append((answer() - whole).square().mean())
        model.load_state_dict(kept)
    return torch.stack(moved)


def clear(model: Network, lane: Tensor) -> None:
    """Let no block write or read these of a token's numbers."""
    for block in model.blocks:
        for writes in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
            writes.weight[lane], writes.bias[lane] = 0.0, 0.0
        for reads in (block.attn.qkv, block.cross_attn.q_linear, block.mlp.fc1):
            reads.weight[:, lane] = 0.0


def weigh(model: Network, lane: Tensor, variance: float) -> None:
    """Let the last modulation give the lane the weight that noise of a time asks for.

    Of x = alpha z + sigma eps, z of variance s, the best linear guess of v = alpha eps - sigma z
    is alpha sigma (1 - s) / (alpha^2 s + sigma^2) x. What blocks read of times stays.
    """
    mlp, block = model.t_embedder.mlp, model.t_block[1]
    times = torch.arange(SCHEDULE.config.num_train_timesteps).float()

    def read() -> Tensor:
        told: Tensor = model.t_block(model.t_embedder(times))
        return told

    before = read()
    squared = SCHEDULE.alphas_cumprod[:, None]
    wanted = (squared * (1 - squared)).sqrt() * (1 - variance) / (squared * variance + 1 - squared)
    scale = model.final_layer.scale_shift_table[1, lane]
    given = inputs_of(mlp[2], read)
    mlp[2].weight[lane], mlp[2].bias[lane] = fitted(given, wanted - 1 - scale, ridge=1e-8)
    block.weight[:], block.bias[:] = fitted(inputs_of(block, read), before, ridge=1e-8)


def fitted(given: Tensor, wanted: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer that is nearest to what is wanted, by least squares."""
    x = torch.cat([given, torch.ones_like(given[:, :1])], dim=1).double()
    gram = x.T @ x
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram))
    solved = torch.linalg.solve(gram, x.T @ wanted.double()).T.float()
    return solved[:, :-1], solved[:, -1]


@torch.no_grad()
def leave(model: Network, data: Features) -> None:
    """The way out by least squares, over many patches at all times."""
    linear, channels = model.final_layer.linear, model.config.in_channels
    given, asked = [], []
    for seed in range(1, ROUNDS + 1):
        x, t, batch, v = noised(data, PICTURES, seed)
        told = partial(model, x, t.float(), batch.text.embeddings, batch.text.mask)
        given.append(inputs_of(linear, told))
        asked.append(patches(v).permute(0, 2, 3, 1).flatten(1))  # channels run fastest
    weight, bias = fitted(torch.cat(given), torch.cat(asked), RIDGE)
    for new, solved in ((linear.weight, weight), (linear.bias, bias)):
        squares = solved.unflatten(0, (-1, channels))  # the variance's channels stay
        new.unflatten(0, (len(squares), -1))[:, :channels] = squares


def main() -> None:
    """Read, widen, learn times, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("transformer", "features", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    weaker = read_transformer(args.transformer, dtype=torch.float32)
    twice = dataclasses.replace(
        weaker.config, patch_size=4, sample_size=2 * weaker.config.sample_size
    )
    model = PixArtTransformer(twice)
    of_patches = ("x_embedder.proj.weight", "final_layer.linear.")
    kept = {k: v for k, v in weaker.state_dict().items() if not k.startswith(of_patches)}
    model.load_state_dict(kept, strict=False)
    print(f"times are read with an error of {learn_times(model):.1%}")
    widen(model, weaker, open_features(args.features))
    save_transformer(model, args.out)


if __name__ == "__main__":
    main()
