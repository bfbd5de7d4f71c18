"""Samplers as published: `scheduler_config.json` of diffusers, read and written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pixsigma.config import ScheduleConfig
from pixsigma.diffusion.grids import one_of
from pixsigma.diffusion.samplers.base import GridSampler, Sampler
from pixsigma.diffusion.samplers.ddim import DDIM
from pixsigma.diffusion.samplers.ddpm import DDPM
from pixsigma.diffusion.samplers.dpm_singlestep import DPMSinglestep
from pixsigma.diffusion.samplers.dpm_solver import DPMSolver
from pixsigma.diffusion.samplers.euler import Euler, EulerAncestral
from pixsigma.diffusion.samplers.heun import Heun
from pixsigma.diffusion.samplers.lcm import LCM
from pixsigma.diffusion.samplers.sa_solver import SASolver
from pixsigma.diffusion.samplers.unipc import UniPC
from pixsigma.diffusion.schedule import BETA_SCHEDULES, NoiseSchedule
from pixsigma.errors import InputError, UnknownNameError
from pixsigma.given import is_number

_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_lu_lambdas": "lu",
}
"""Options of diffusers that put another spacing in the place of `timestep_spacing`."""

_OFF: dict[str, Any] = {
    "interpolation_type": "linear",
    "lambda_min_clipped": -math.inf,
    "original_inference_steps": 50,
    "predict_x0": True,
    "rescale_betas_zero_snr": False,
    "shift_terminal": None,
    "sigma_max": None,
    "sigma_min": None,
    "solver_p": None,
    "tau_func": None,
    "thresholding": False,
    "timestep_type": "discrete",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_flow_sigmas": False,
}
"""Options that may only have the value that changes nothing."""

_IDLE = (
    "_diffusers_version",
    "_use_default_values",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "flow_shift",
    "sample_max_value",
    "time_shift_type",
)
"""Options that mean nothing beside those of `_OFF`."""


@dataclass(frozen=True)
class _Format:
    """How a published class spells a sampler: option → (field of ours, its published default)."""

    sampler: type[GridSampler]
    options: dict[str, tuple[str, Any]]
    flags: tuple[str, ...] = ()
    clips: bool | None = None
    """Published default of `clip_sample`; None where the class has no such option."""
    betas: tuple[float, float, str] = (1e-4, 2e-2, "linear")
    off: dict[str, Any] = field(default_factory=dict)
    """More options that may only have the value that changes nothing."""
    idle: tuple[str, ...] = ()
    """More options that the class stores and does not read."""


_LINSPACE = {"timestep_spacing": ("spacing", "linspace"), "steps_offset": ("steps_offset", 0)}
_LEADING = {"timestep_spacing": ("spacing", "leading"), "steps_offset": ("steps_offset", 0)}
_FINAL = {"final_sigmas_type": ("final", "zero")}
_BOTH_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas")


def _dpm(lower_order_final: bool) -> dict[str, tuple[str, Any]]:
    return {
        "solver_order": ("order", 2),
        "algorithm_type": ("algorithm", "dpmsolver++"),
        "solver_type": ("solver_type", "midpoint"),
        "lower_order_final": ("lower_order_final", lower_order_final),
        **_FINAL,
    }


_FORMATS = {
    "DPMSolverMultistepScheduler": _Format(
        DPMSolver,
        {**_dpm(True), "euler_at_final": ("euler_at_final", False), **_LINSPACE},
        tuple(_FLAGS),
        # the networks' variance half never reaches an ODE solver of ours
        idle=("variance_type",),
    ),
    "DPMSolverSinglestepScheduler": _Format(
        DPMSinglestep, _dpm(False), _BOTH_FLAGS, idle=("variance_type",)
    ),
    "SASolverScheduler": _Format(
        SASolver,
        {
            "predictor_order": ("order", 2),
            "corrector_order": ("corrector_order", 2),
            "lower_order_final": ("lower_order_final", True),
            **_LINSPACE,
        },
        _BOTH_FLAGS,
        off={"algorithm_type": "data_prediction"},
        idle=("variance_type",),
    ),
    "UniPCMultistepScheduler": _Format(
        UniPC,
        {
            "solver_order": ("order", 2),
            "solver_type": ("solver_type", "bh2"),
            "lower_order_final": ("lower_order_final", True),
            "disable_corrector": ("disable_corrector", ()),
            **_FINAL,
            **_LINSPACE,
        },
        _BOTH_FLAGS,
    ),
    "DDPMScheduler": _Format(
        DDPM, {"variance_type": ("variance", "fixed_small"), **_LEADING}, clips=True
    ),
    "DDIMScheduler": _Format(DDIM, {"set_alpha_to_one": ("final", True), **_LEADING}, clips=True),
    "EulerDiscreteScheduler": _Format(Euler, {**_FINAL, **_LINSPACE}, _BOTH_FLAGS),
    "EulerAncestralDiscreteScheduler": _Format(EulerAncestral, _LINSPACE),
    "HeunDiscreteScheduler": _Format(
        Heun,
        _LINSPACE,
        _BOTH_FLAGS,
        betas=(0.00085, 0.012, "linear"),
        off={"clip_sample": False},
    ),
    "LCMScheduler": _Format(
        LCM,
        {"timestep_scaling": ("timestep_scaling", 10.0)},
        clips=False,
        betas=(0.00085, 0.012, "scaled_linear"),
        idle=("set_alpha_to_one", "steps_offset", "timestep_spacing"),
    ),
}


def sampler_from_config(config: Mapping[str, Any]) -> tuple[Sampler, ScheduleConfig]:
    """The sampler and the noise schedule that a scheduler_config.json describes.

    Options that are absent have diffusers' defaults for the class. Raises UnknownNameError for a
    class or option that we do not know, InputError for an option that we cannot honour.
    """
    name = config.get("_class_name")
    form = _FORMATS.get(str(name))
    if form is None:
        raise UnknownNameError(
            f"scheduler_config.json must name one of {', '.join(_FORMATS)}, got {name!r}"
        )
    _check_options(str(name), form, config)
    values = {
        ours: _read(option, config.get(option, default))
        for option, (ours, default) in form.options.items()
    }
    if form.clips is not None:
        clips = config.get("clip_sample", form.clips)
        values["clip_range"] = float(config.get("clip_sample_range", 1.0)) if clips else None
    if form.sampler is LCM:
        values["spacing"] = "lcm-even"
    values |= _flagged(form, config, values.get("spacing", "linspace"))
    sampler: Any = form.sampler(**values)
    return sampler, _schedule_of(form, config)


def config_of(sampler: Sampler, schedule: NoiseSchedule) -> dict[str, Any]:
    """The scheduler_config.json of a sampler and its schedule.

    Raises InputError for what diffusers has no words for, such as the authors' continuous time.
    """
    named: dict[type[Any], tuple[str, _Format]] = {
        form.sampler: (name, form) for name, form in _FORMATS.items()
    }
    if type(sampler) not in named:
        raise InputError(f"diffusers has no scheduler for {type(sampler).__name__}")
    name, form = named[type(sampler)]
    c = schedule.config
    config: dict[str, Any] = {"_class_name": name}
    for option in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"):
        config[option] = getattr(c, option)
    config["prediction_type"] = c.prediction_type
    for option, (ours, _) in form.options.items():
        config[option] = _written(option, getattr(sampler, ours))
    config |= _spacing_options(sampler, form, config)
    if form.clips is not None:
        clip_range = getattr(sampler, "clip_range", None)
        config["clip_sample"] = clip_range is not None
        config["clip_sample_range"] = clip_range or 1.0
    _check_unwritten(sampler, form, name)
    return config


def _check_options(name: str, form: _Format, config: Mapping[str, Any]) -> None:
    off = _OFF | form.off
    known = {*off, *_IDLE, *form.idle, *form.options, *form.flags, "_class_name"}
    known |= {each.name for each in fields(ScheduleConfig)}
    known |= {"clip_sample"} if form.clips is not None else set()
    for option, value in config.items():
        if option not in known:
            raise UnknownNameError(
                f"the options of {name} are {', '.join(sorted(known))}, got {option!r}"
            )
        if option in off and value != off[option]:
            raise InputError(f"{option} must be {off[option]!r} for {name}, got {value!r}")


def _flagged(form: _Format, config: Mapping[str, Any], base: str) -> dict[str, str]:
    """The spacing that a flag puts in the place of `timestep_spacing`."""
    raised = [flag for flag in form.flags if config.get(flag)]
    if not raised:
        return {}
    if len(raised) > 1:
        raise InputError(f"one spacing at a time, got {' and '.join(raised)}")
    if form.sampler.points == "real" and base != "linspace":
        # there diffusers spans only the levels that the base spacing reaches
        raise InputError(f"{raised[0]} needs timestep_spacing 'linspace', got {base!r}")
    return {"spacing": _FLAGS[raised[0]]}


def _schedule_of(form: _Format, config: Mapping[str, Any]) -> ScheduleConfig:
    start, end, kind = form.betas
    one_of("beta_schedule", config.get("beta_schedule", kind), BETA_SCHEDULES)
    numbers = {"num_train_timesteps": 1000, "beta_start": start, "beta_end": end}
    told = {key: config.get(key, usual) for key, usual in numbers.items()}
    for key, value in told.items():
        if not is_number(value) or value <= 0:
            raise InputError(f"{key} must be a number above 0, got {value!r}")
    return ScheduleConfig(
        num_train_timesteps=int(told["num_train_timesteps"]),
        beta_start=float(told["beta_start"]),
        beta_end=float(told["beta_end"]),
        beta_schedule=config.get("beta_schedule", kind),
        prediction_type=config.get("prediction_type", "epsilon"),
    )


def _read(option: str, value: Any) -> Any:
    if option == "set_alpha_to_one":
        return "zero" if value else "sigma_min"
    return tuple(value) if isinstance(value, list) else value


def _written(option: str, value: Any) -> Any:
    if option == "set_alpha_to_one":
        return value == "zero"
    return list(value) if isinstance(value, tuple) else value


def _spacing_options(sampler: Any, form: _Format, config: Mapping[str, Any]) -> dict[str, Any]:
    """Flags and `timestep_spacing`, or InputError for a spacing that the class has not."""
    spacing = sampler.spacing
    raised = {flag: _FLAGS[flag] == spacing for flag in form.flags}
    if any(raised.values()):
        return raised | ({"timestep_spacing": "linspace"} if "timestep_spacing" in config else {})
    known: tuple[str, ...] = ("linspace",)
    if form.sampler is LCM:
        known = ("lcm-even",)
    elif "timestep_spacing" in config:
        known = ("linspace", "leading", "trailing")
    if spacing not in known:
        raise InputError(
            f"diffusers has no spacing {spacing!r} for this sampler: "
            f"save a sampler with one of {', '.join(known)}"
        )
    return raised


def _check_unwritten(sampler: Any, form: _Format, name: str) -> None:
    """What the class has no option for must be as the class has it: our default."""
    written = {ours for ours, _ in form.options.values()} | {
        "spacing",
        "steps_offset",
        "clip_range",
    }
    for each in fields(sampler):
        if each.name not in written and getattr(sampler, each.name) != each.default:
            raise InputError(
                f"{name} has no option for {each.name}={getattr(sampler, each.name)!r}: "
                f"only {each.default!r} can be saved"
            )
