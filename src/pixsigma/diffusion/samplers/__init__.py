"""Samplers by name: frozen values; vary one with `dataclasses.replace(sampler, spacing="karras")`.

"dpm++2m"          the default: the scheduler published with PixArt-Σ for diffusers
"dpm++2m-authors"  that of the PixArt repository: continuous time, ends with sigma 0.01
"sa", "sa-authors" the same two readings of SA-Solver
"iddpm"            ancestral, with the variance that the network has learned
"lcm"              for networks distilled into consistency models, in 1 to 8 steps
"""

import dataclasses
from difflib import get_close_matches

from pixsigma.diffusion.samplers.base import GridSampler, Noise, Predict, Sampler, State
from pixsigma.diffusion.samplers.ddim import DDIM
from pixsigma.diffusion.samplers.ddpm import DDPM
from pixsigma.diffusion.samplers.dpm_singlestep import DPMSinglestep
from pixsigma.diffusion.samplers.dpm_solver import DPMSolver
from pixsigma.diffusion.samplers.euler import Euler, EulerAncestral
from pixsigma.diffusion.samplers.heun import Heun
from pixsigma.diffusion.samplers.lcm import LCM
from pixsigma.diffusion.samplers.sa_solver import SASolver
from pixsigma.diffusion.samplers.unipc import UniPC
from pixsigma.errors import UnknownNameError

DEFAULT_SAMPLER = "dpm++2m"
"""What is used where nothing is said."""

SAMPLERS: dict[str, Sampler] = {
    "dpm++2m": DPMSolver(),
    "dpm++2m-authors": DPMSolver(spacing="authors", lower_order_always=True),
    "dpm++2m-karras": DPMSolver(spacing="karras"),
    "dpm++2m-sde": DPMSolver(algorithm="sde-dpmsolver++"),
    "dpm++1": DPMSolver(order=1),
    "dpm++3m": DPMSolver(order=3),
    "dpm++2s": DPMSinglestep(),
    "dpm++3s": DPMSinglestep(order=3),
    "sa": SASolver(),
    "sa-authors": SASolver(spacing="authors", stochastic_between=(199.0, 799.0), authors=True),
    "ddpm": DDPM(),
    "iddpm": DDPM(spacing="iddpm", variance="learned_range"),
    "ddim": DDIM(),
    "euler": Euler(),
    "euler-a": EulerAncestral(),
    "heun": Heun(),
    "unipc": UniPC(),
    "lcm": LCM(),
}
"""Every sampler under the name that people give."""

__all__ = [
    "DDIM",
    "DDPM",
    "DEFAULT_SAMPLER",
    "LCM",
    "SAMPLERS",
    "DPMSinglestep",
    "DPMSolver",
    "Euler",
    "EulerAncestral",
    "GridSampler",
    "Heun",
    "Noise",
    "Predict",
    "SASolver",
    "Sampler",
    "State",
    "UniPC",
    "get_sampler",
    "with_eta",
]


def get_sampler(name: str) -> Sampler:
    """The sampler of this name; UnknownNameError tells the nearest names."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    near = get_close_matches(name, SAMPLERS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownNameError(f"there is no sampler {name!r}: {hint}known are {', '.join(SAMPLERS)}")


def with_eta(sampler: Sampler, eta: float) -> Sampler:
    """DDIM with this much noise; other samplers have no eta and are given back as they are."""
    if eta and dataclasses.is_dataclass(sampler) and hasattr(sampler, "eta"):
        return dataclasses.replace(sampler, eta=eta)
    return sampler
