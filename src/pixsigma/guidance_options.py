"""How the text may lead besides its scale: plain data, for requests and for the loop alike."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pixsigma.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share of the steps: step i of S begins at i / S."""

LARGEST_SCALE = 100.0
"""What may be asked for at most."""


class GuidanceOptions(BaseModel):
    """Extensions of classifier-free guidance; the defaults leave it as it is.

    Which of them go together, and the formulas, are in docs/steering.md. A pair that does not is
    refused: by pydantic's ValidationError here, by InputError in a request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    start: Fraction = 0.0
    """Guidance begins here; outside of [start, stop) the network sees the prompt alone."""
    stop: Fraction = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the scale goes from the request's `guidance_scale` to `end_scale`."""
    end_scale: float = Field(default=1.0, ge=0, le=LARGEST_SCALE)
    """The scale of the last step, where there is a schedule."""
    rescale: Fraction = 0.0
    """Share of the prediction that gets the conditional one's spread (Lin et al. 2023)."""
    apg: bool = False
    """Adaptive projected guidance (Sadat et al. 2024)."""
    apg_parallel: float = Field(default=0.0, ge=0, le=1)
    """How much stays of the update's part along the conditional x0."""
    apg_momentum: float = Field(default=-0.5, gt=-1, lt=1)
    """Weight of the earlier updates; a negative one pushes away from them."""
    apg_norm: float | None = Field(default=None, gt=0)
    """Longest update, as an L2 norm over C, H, W; the paper takes 15 for SDXL at 1024 pixels."""
    cfgpp: Fraction | None = None
    """CFG++ (Chung et al. 2024) with this weight, in place of `guidance_scale`."""
    pag: float = Field(default=0.0, ge=0, le=LARGEST_SCALE)
    """Scale of perturbed-attention guidance (Ahn et al. 2024); 3 is usual, 0 is none."""
    seg: float = Field(default=0.0, ge=0, le=LARGEST_SCALE)
    """Scale of smoothed-energy guidance (Hong 2024); 3 is usual, 0 is none."""
    seg_blur: float | None = Field(default=None, gt=0, le=1000)
    """Standard deviation of the blur in tokens; None averages over the whole picture."""
    layers: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """Blocks that PAG or SEG disturb, counted from 0; none named is the middle one."""

    @model_validator(mode="after")
    def _check(self) -> "GuidanceOptions":
        if self.start >= self.stop:
            raise InputError(
                f"guidance must start before it stops, got {self.start:g} to {self.stop:g}"
            )
        if self.pag and self.seg:
            raise InputError("PAG and SEG both disturb self-attention: choose one")
        if self.apg and self.rescale:
            raise InputError("apg and rescale both tame the update of guidance: choose one")
        self._check_owners()
        if self.cfgpp is not None and (others := self._beside_cfgpp()):
            raise InputError(
                "CFG++ sets the scale and the noise by itself, with only an interval beside it: "
                f"leave out {' and '.join(others)}, or cfgpp"
            )
        return self

    def _check_owners(self) -> None:
        owners = {
            "end_scale": ("schedule", self.schedule != "constant"),
            "apg_parallel": ("apg", self.apg),
            "apg_momentum": ("apg", self.apg),
            "apg_norm": ("apg", self.apg),
            "seg_blur": ("seg", self.seg > 0),
            "layers": ("pag or seg", self.disturbs),
        }
        for name, (owner, given) in owners.items():
            if not given and getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(
                    f"{name} does nothing without {owner}: set it, or leave out {name}"
                )

    def _beside_cfgpp(self) -> list[str]:
        scheduled = self.schedule != "constant"
        named = {
            "schedule": scheduled,
            "rescale": self.rescale,
            "apg": self.apg,
            "pag": self.pag,
            "seg": self.seg,
        }
        return [name for name, given in named.items() if given]

    @property
    def disturbs(self) -> bool:
        """Whether a row of the network has its self-attention disturbed: PAG or SEG."""
        return self.pag > 0 or self.seg > 0

    @property
    def plain(self) -> bool:
        """Whether this is classifier-free guidance and nothing else."""
        return self == GuidanceOptions()
