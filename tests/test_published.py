"""scheduler_config.json: what is read, what is refused, what cannot be written."""

import dataclasses

import pytest

from pixsigma.config import ScheduleConfig
from pixsigma.diffusion.samplers import DDPM, LCM, SAMPLERS, DPMSolver, Euler
from pixsigma.diffusion.samplers.published import config_of, sampler_from_config
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, UnknownNameError

PIXART = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.27.0",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "lambda_min_clipped": float("-inf"),
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
}


def test_the_published_file_is_the_default_sampler() -> None:
    assert sampler_from_config(PIXART) == (SAMPLERS["dpm++2m"], ScheduleConfig())


def test_absent_options_are_those_of_the_class() -> None:
    sampler, schedule = sampler_from_config({"_class_name": "LCMScheduler"})
    assert sampler == LCM(spacing="lcm-even")
    assert (schedule.beta_start, schedule.beta_schedule) == (0.00085, "scaled_linear")
    sampler, _ = sampler_from_config({"_class_name": "DDPMScheduler"})
    assert sampler == DDPM(clip_range=1.0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"_class_name": "PNDMScheduler"}, UnknownNameError, "PNDMScheduler"),
        ({"_class_name": None}, UnknownNameError, "must name one of"),
        ({"skip_prk_steps": True}, UnknownNameError, "skip_prk_steps"),
        ({"thresholding": True}, InputError, "thresholding must be False"),
        ({"use_flow_sigmas": True}, InputError, "use_flow_sigmas"),
        ({"use_beta_sigmas": True}, InputError, "use_beta_sigmas"),
        ({"lambda_min_clipped": -5.1}, InputError, "lambda_min_clipped"),
        ({"trained_betas": [0.1]}, InputError, "trained_betas"),
        ({"algorithm_type": "dpmsolver"}, UnknownNameError, "dpmsolver"),
        ({"solver_order": 4}, UnknownNameError, "solver order"),
        ({"beta_schedule": "squaredcos_cap_v2"}, UnknownNameError, "squaredcos_cap_v2"),
        ({"prediction_type": "flow_prediction"}, InputError, "flow_prediction"),
        ({"use_karras_sigmas": True, "use_lu_lambdas": True}, InputError, "one spacing"),
    ],
)
def test_what_cannot_be_honoured_is_named(
    change: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        sampler_from_config(PIXART | change)


def test_euler_spans_its_own_grid() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    assert sampler_from_config(config)[0] == Euler(spacing="karras")
    with pytest.raises(InputError, match="linspace"):
        sampler_from_config(config | {"timestep_spacing": "leading"})


@pytest.mark.parametrize(
    "name", [n for n in SAMPLERS if n not in ("dpm++2m-authors", "sa-authors", "iddpm", "lcm")]
)
def test_every_sampler_of_diffusers_is_written(name: str) -> None:
    config = config_of(SAMPLERS[name], NoiseSchedule())
    assert sampler_from_config(config) == (SAMPLERS[name], ScheduleConfig())


@pytest.mark.parametrize("name", ["dpm++2m-authors", "sa-authors", "iddpm", "lcm"])
def test_what_diffusers_has_no_words_for_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no spacing"):
        config_of(SAMPLERS[name], NoiseSchedule())


def test_fields_without_an_option_are_refused() -> None:
    schedule = NoiseSchedule()
    with pytest.raises(InputError, match="eta=1"):
        config_of(dataclasses.replace(SAMPLERS["ddim"], eta=1.0), schedule)  # type: ignore[type-var]
    with pytest.raises(InputError, match="lower_order_always"):
        config_of(DPMSolver(lower_order_always=True), schedule)
    with pytest.raises(InputError, match="final='sigma_min'"):
        config_of(DDPM(final="sigma_min"), schedule)
