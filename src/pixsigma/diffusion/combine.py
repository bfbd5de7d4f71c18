"""The formulas of guidance: what comes of a conditional and an unconditional prediction."""

import math

from torch import Tensor

from pixsigma.guidance_options import GuidanceOptions


def scale_at(options: GuidanceOptions, scale: float, i: int, num_steps: int) -> float:
    """The guidance scale of step i: from `scale` to `end_scale`, 1 outside of the interval.

    Interval: Kynkäänniemi et al. 2024; schedules: Wang et al. 2024. Below 1 is 1, no guidance.
    """
    if not options.start <= i / num_steps < options.stop:
        return 1.0
    if options.schedule == "constant":
        return max(1.0, scale)
    done = i / max(num_steps - 1, 1)
    left = 1 - done if options.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return max(1.0, options.end_scale + (scale - options.end_scale) * left)


def rescaled(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    """`guided` with `share` of it at the standard deviation of `cond`, a picture at a time.

    Both (B, C, H, W). Lin et al. 2023, section 3.4.
    """
    dims = tuple(range(1, cond.ndim))
    ratio = cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return guided * (share * ratio + (1 - share))


class ProjectedUpdate:
    """The update of adaptive projected guidance (Sadat et al. 2024), with its memory.

    One object serves one drawing: the momentum runs over its steps.
    """

    def __init__(self, options: GuidanceOptions) -> None:
        self.options = options
        self._running: Tensor | float = 0.0

    def __call__(self, cond: Tensor, null: Tensor) -> Tensor:
        """From x0 (B, C, H, W) with and without text, to what `(scale - 1)` multiplies."""
        options = self.options
        update = cond - null + options.apg_momentum * self._running
        self._running = update
        dims = tuple(range(1, cond.ndim))
        if options.apg_norm is not None:
            length = update.square().sum(dim=dims, keepdim=True).sqrt()
            update = update * (options.apg_norm / length.clamp(min=1e-12)).clamp(max=1)
        size = cond.square().sum(dim=dims, keepdim=True).clamp(min=1e-12)
        parallel = (update * cond).sum(dim=dims, keepdim=True) / size * cond
        return update - (1 - options.apg_parallel) * parallel
