"""What may be left out of a drawing to have it sooner, as plain data for requests and the loop."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
"""Of the way from noise to picture, counted in timesteps."""


class FastOptions(BaseModel):
    """Approximations, each off by default; docs/performance.md says what they cost."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    cache: Share = 0.0
    """Where the first block changes by less than this since it was last followed by the others,
    what those add is taken over (first-block cache); 0 computes all."""
    longest: int = Field(default=3, ge=1, le=100)
    """Steps in a row, at most, in which that may happen."""
    forecast: bool = False
    """Whether what is taken over goes on as it last changed (Liu et al. 2025, "TaylorSeer", first
    order)."""
    begin: Share = 0.1
    """Before this everything is computed."""
    gate: Share = 1.0
    """From here on the answers of the cross-attention stay as they are (Zhang et al. 2024,
    "T-GATE")."""
    guided: Share = 1.0
    """From here on there is no guidance, in half the time; a share of the steps, as in `guidance`
    (Kynkäänniemi et al. 2024)."""


FAST = FastOptions(cache=0.12)
"""The preset of `--fast`: of what benchmarks/fast.py draws, the least work that beats fewer exact
steps."""
