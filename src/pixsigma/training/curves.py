"""The loss and the learning rate of a run as one picture."""

from pathlib import Path
from typing import Any

from pixsigma.weights.files import atomic_write

SMOOTHING = 0.9
"""Share of the running mean that a report leaves in place."""


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG of the metrics' rows; nothing for a run that has told nothing.

    Raises OutputError.
    """
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [row["step"] for row in rows]
    losses = [row["loss"] for row in rows]
    loss.plot(steps, losses, color="tab:blue", alpha=0.3)
    loss.plot(steps, running_mean(losses), color="tab:blue", label="training, running mean")
    held_out = [(row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row]
    if held_out:
        loss.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="held out")
    loss.set_ylabel("loss")
    if min(losses) > 0:
        loss.set_yscale("log")
    loss.grid(alpha=0.3, which="both")
    loss.legend()
    rate.plot(steps, [row["learning_rate"] for row in rows], color="tab:green")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    rate.grid(alpha=0.3)
    with atomic_write(path) as temp:
        figure.savefig(temp, format="png", dpi=110)


def running_mean(values: list[float]) -> list[float]:
    """Exponential, corrected for its start."""
    means, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + 1 - SMOOTHING
        means.append(mean / weight)
    return means
