"""What the studio says, in words and bars; all of it is HTML with the strangers' parts escaped."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from pixsigma.server.service import Status
from pixsigma.server.studio.estimate import Estimate, Work

HEAVY_SECONDS = 60
"""Drawings that last longer are begun only when they are asked for twice."""


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def gigabytes(num: float) -> str:
    """Bytes in words."""
    return f"{num / 1e9:.1f} GB"


def is_heavy(estimate: Estimate) -> bool:
    """Whether a person should think twice."""
    return estimate.peak > estimate.room or (estimate.seconds or 0) > HEAVY_SECONDS


def plan(work: Work, estimate: Estimate) -> str:
    """What a request will cost."""
    pictures = f"{work.num} pictures of " if work.num > 1 else ""
    text = f"{pictures}{work.width} × {work.height}, {work.steps} steps"
    if estimate.seconds is not None:
        text += f": about {duration(estimate.seconds)}"
    text += f", {gigabytes(estimate.peak)} of memory at the most"
    if estimate.peak > estimate.room:
        return text + f" – <b>more than the {gigabytes(estimate.room)} that there is</b>"
    return text


def warning(work: Work, estimate: Estimate) -> str:
    """The same before a heavy drawing, which waits for a yes."""
    return note(
        "heavy",
        f"<b>This is heavy.</b> {plan(work, estimate)}. "
        "Draw anyway, or take fewer steps, a smaller size or fewer pictures.",
    )


def note(kind: str, html: str) -> str:
    """A line of the status: `heavy`, `wrong`, `going` or `done`."""
    role = {"wrong": "alert", "heavy": "alert", "done": "status"}.get(kind, "none")
    return f"<div class='note {kind}' role='{role}'>{html}</div>"


def wrong(reason: object) -> str:
    """Why something was not done."""
    return note("wrong", f"<b>That does not work:</b> {escape(str(reason))}")


def clipped(text: str, most: int = 240) -> str:
    """The beginning, where a warning repeats a long prompt and would push the picture away."""
    return text if len(text) <= most else f"{text[:most].rstrip()}…"


def bar(done: int, total: int, text: str) -> str:
    """Progress, for eyes and for screen readers."""
    return note(
        "going",
        f"<progress max='{max(1, total)}' value='{done}' aria-label='progress'></progress>"
        f"<span>{text}</span>",
    )


def sentence(status: Status) -> str:
    """How a job stands, for people."""
    job, seen = status.job, status.glimpse
    match job.state:
        case "queued":
            num = status.place
            return note("going", f"Waiting; {num} before it." if num else "Next in line.")
        case "running" if seen is None or seen.stage == "text":
            return note("going", "Reading the prompt…")
        case "running" if seen is not None and seen.stage == "denoising":
            left = "" if seen.seconds_left is None else f", {duration(seen.seconds_left)} left"
            return bar(seen.index, seen.total, f"step {seen.index} of {seen.total}{left}")
        case "running" if seen is not None:
            return bar(seen.total, seen.total, "Painting the pixels…")
        case "done":
            told = "".join(f"<br>⚠ {escape(clipped(warned))}" for warned in job.warnings)
            seeds = ", ".join(map(str, job.seeds))
            several = "s" if len(job.seeds) > 1 else ""
            return note("done", f"Drawn in {job.seconds or 0:.1f} s, seed{several} {seeds}.{told}")
        case "cancelled":
            return note("done", "Stopped.")
    why = escape(job.reason or "no reason is known")
    return note("wrong", f"<b>That did not work:</b> {why}")


def told(fields: Mapping[str, Any], seed: int | None = None, model: str = "") -> str:
    """The settings of a picture as plain text, one a line; `seed` is that of the picture."""
    names = {
        "prompt": "prompt",
        "negative_prompt": "leave out",
        "style": "style",
        "width": "width",
        "height": "height",
        "num_inference_steps": "steps",
        "guidance_scale": "guidance",
        "sampler": "sampler",
        "seed": "seed",
        "strength": "distance",
    }
    shown = {**fields, "seed": fields.get("seed") if seed is None else seed}
    lines = [
        f"{name}: {shown[key]}" for key, name in names.items() if shown.get(key) not in (None, "")
    ]
    lines += [f"adapter: {stem(lora)}" for lora in fields.get("loras", ())]
    lines += ["begun from a picture" + (" under a mask" if fields.get("mask") else "")] * bool(
        fields.get("image")
    )
    return "\n".join([*lines, f"model: {model}"] if model else lines)


def stem(lora: Mapping[str, Any]) -> str:
    """An adapter without this machine's path."""
    name = str(lora["path"]).replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
    return f"{name or lora['path']} × {lora['weight']:g}"
