"""Our samplers against the schedulers of diffusers: same denoiser, same noise, same picture."""

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_sasolver import SASolverScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from doubles import Mixture, run, seeded_noise
from pixsigma.diffusion.prediction import Prediction, predicted
from pixsigma.diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, Sampler
from pixsigma.diffusion.samplers.published import config_of, sampler_from_config
from pixsigma.diffusion.schedule import Level, NoiseSchedule

# diffusers turns tensors into arrays in a way that newer numpy discourages
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 4, 8, 8)
MIXTURE = Mixture()
LINEAR = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
NOT_CLIPPED = {"clip_sample": False}

CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "pixart": (DPMSolverMultistepScheduler, {}),
    "dpm-leading": (
        DPMSolverMultistepScheduler,
        {"timestep_spacing": "leading", "steps_offset": 1},
    ),
    "dpm-trailing": (DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
    "dpm-heun": (DPMSolverMultistepScheduler, {"solver_type": "heun"}),
    "dpm-1": (DPMSolverMultistepScheduler, {"solver_order": 1}),
    "dpm-3": (DPMSolverMultistepScheduler, {"solver_order": 3}),
    "dpm-3-end": (
        DPMSolverMultistepScheduler,
        {"solver_order": 3, "final_sigmas_type": "sigma_min", "lower_order_final": False},
    ),
    "dpm-end": (DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min"}),
    "dpm-euler-end": (
        DPMSolverMultistepScheduler,
        {"final_sigmas_type": "sigma_min", "euler_at_final": True},
    ),
    "dpm-karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpm-karras-end": (
        DPMSolverMultistepScheduler,
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    ),
    "dpm-exponential": (DPMSolverMultistepScheduler, {"use_exponential_sigmas": True}),
    "dpm-lu": (DPMSolverMultistepScheduler, {"use_lu_lambdas": True}),
    "dpm-sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm-sde-heun": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_karras_sigmas": True},
    ),
    "dpm-v": (DPMSolverMultistepScheduler, {"prediction_type": "v_prediction"}),
    "dpm-x0": (DPMSolverMultistepScheduler, {"prediction_type": "sample"}),
    "dpm-sd": (
        DPMSolverMultistepScheduler,
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    ),
    "single-2": (DPMSolverSinglestepScheduler, {"lower_order_final": True}),
    "single-3": (DPMSolverSinglestepScheduler, {"solver_order": 3, "lower_order_final": True}),
    "single-3-heun": (
        DPMSolverSinglestepScheduler,
        {"solver_order": 3, "solver_type": "heun", "lower_order_final": True},
    ),
    "single-2-end": (
        DPMSolverSinglestepScheduler,
        {"final_sigmas_type": "sigma_min", "lower_order_final": True, "solver_type": "heun"},
    ),
    "single-2-full": (DPMSolverSinglestepScheduler, {"final_sigmas_type": "sigma_min"}),
    "single-3-full": (
        DPMSolverSinglestepScheduler,
        {"solver_order": 3, "final_sigmas_type": "sigma_min"},
    ),
    "single-2-plain": (DPMSolverSinglestepScheduler, {}),
    "single-karras": (
        DPMSolverSinglestepScheduler,
        {"use_karras_sigmas": True, "lower_order_final": True},
    ),
    "single-sde": (
        DPMSolverSinglestepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
    ),
    "sa": (SASolverScheduler, {}),
    "sa-3-4": (SASolverScheduler, {"predictor_order": 3, "corrector_order": 4}),
    "sa-1-1": (SASolverScheduler, {"predictor_order": 1, "corrector_order": 1}),
    "sa-trailing": (SASolverScheduler, {"timestep_spacing": "trailing"}),
    "sa-karras": (SASolverScheduler, {"use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "unipc-3": (UniPCMultistepScheduler, {"solver_order": 3}),
    # at a noise-free end diffusers' bh1 is inf · 0
    "unipc-bh1": (
        UniPCMultistepScheduler,
        {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ),
    "unipc-plain": (UniPCMultistepScheduler, {"disable_corrector": [0, 2]}),
    "unipc-end": (
        UniPCMultistepScheduler,
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    ),
    "unipc-exponential": (UniPCMultistepScheduler, {"use_exponential_sigmas": True}),
    "ddpm": (DDPMScheduler, NOT_CLIPPED),
    "ddpm-clipped": (DDPMScheduler, {"clip_sample_range": 1.5}),
    "ddpm-large": (DDPMScheduler, {"variance_type": "fixed_large", **NOT_CLIPPED}),
    "ddpm-learned": (DDPMScheduler, {"variance_type": "learned_range", **NOT_CLIPPED}),
    "ddpm-linspace": (DDPMScheduler, {"timestep_spacing": "linspace", **NOT_CLIPPED}),
    "ddpm-trailing": (DDPMScheduler, {"timestep_spacing": "trailing", **NOT_CLIPPED}),
    "ddim": (DDIMScheduler, NOT_CLIPPED),
    "ddim-clipped": (DDIMScheduler, {}),
    "ddim-sd": (DDIMScheduler, {"set_alpha_to_one": False, "steps_offset": 1, **NOT_CLIPPED}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-leading": (EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    "euler-trailing": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler-karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "euler-end": (
        EulerDiscreteScheduler,
        {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
    ),
    "euler-exponential": (EulerDiscreteScheduler, {"use_exponential_sigmas": True}),
    "euler-a": (EulerAncestralDiscreteScheduler, {}),
    "euler-a-v": (EulerAncestralDiscreteScheduler, {"prediction_type": "v_prediction"}),
    "heun": (HeunDiscreteScheduler, LINEAR),
    "heun-karras": (HeunDiscreteScheduler, {"use_karras_sigmas": True, **LINEAR}),
    "lcm": (LCMScheduler, LINEAR),
}


def network(kind: str, schedule: NoiseSchedule) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """Smooth and nonlinear: the exact answer for a mixture, in the asked-for parameterisation."""

    def output(x: torch.Tensor, t: float) -> torch.Tensor:
        level = schedule.level_between(t)
        eps = MIXTURE.eps(x, level.alpha, level.sigma)
        x0 = (x - level.sigma * eps) / level.alpha
        v = level.alpha * eps - level.sigma * x0
        return {"epsilon": eps, "sample": x0, "v_prediction": v}[kind]

    return output


def exactly(scheduler: Any, schedule: NoiseSchedule, num_steps: int) -> Any:
    """The scheduler with its constants in float64: in float32 1 - ᾱ_0 has three digits left."""
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.set_timesteps(num_steps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def theirs(scheduler: Any, noise: torch.Tensor, output: Any, learned: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    takes = scheduler.step.__code__.co_varnames
    extra = {"generator": generator} if "generator" in takes else {}
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = output(scheduler.scale_model_input(x, t), float(t))
        out = torch.cat([out, torch.tanh(out)], dim=1) if learned else out
        x = scheduler.step(out, t, x, **extra).prev_sample
        x = x.float()
    return x


def ours(
    sampler: Sampler,
    levels: tuple[Level, ...],
    noise: torch.Tensor,
    output: Any,
    kind: str,
) -> torch.Tensor:
    def predict(x: torch.Tensor, level: Level) -> Prediction:
        out = output(x, level.timestep)
        return predicted(torch.cat([out, torch.tanh(out)], dim=1), x, level, kind)

    return run(sampler, predict, sampler.start(noise, levels), levels, seeded_noise(SHAPE, 7))


def assert_same(mine: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert torch.linalg.norm(mine - reference) <= tolerance * torch.linalg.norm(reference)


def both(cls: type, options: dict[str, Any]) -> tuple[Any, Sampler, NoiseSchedule]:
    with warnings.catch_warnings():
        # a scheduler's own advice, not ours
        warnings.simplefilter("ignore")
        scheduler = cls(**options)
    sampler, config = sampler_from_config({"_class_name": cls.__name__, **options})
    return scheduler, sampler, NoiseSchedule(config)


def pictures(case: str, num_steps: int, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
    scheduler, sampler, schedule = both(*CASES[case])
    kind = scheduler.config.prediction_type
    noise, output = seeded_noise(SHAPE, 1)(), network(kind, schedule)
    if exact:
        exactly(scheduler, schedule, num_steps)
    else:
        scheduler.set_timesteps(num_steps)
    learned = "learned_range" in CASES[case][1].values()
    levels = sampler.levels(schedule, num_steps)
    reference = theirs(scheduler, noise, output, learned)
    if case.startswith("euler"):
        # diffusers' Euler hands out x / alpha; the two differ where the end has noise
        reference = reference * levels[-1].alpha
    return ours(sampler, levels, noise, output, kind), reference


@pytest.mark.parametrize("num_steps", [5, 14, 20, 50])
@pytest.mark.parametrize("case", CASES)
def test_same_picture(case: str, num_steps: int) -> None:
    assert_same(*pictures(case, num_steps, exact=True))


@pytest.mark.parametrize("case", CASES)
def test_same_picture_up_to_the_rounding_of_diffusers(case: str) -> None:
    assert_same(*pictures(case, 20, exact=False), tolerance=1e-4)


@pytest.mark.parametrize("num_steps", [5, 14, 20, 50])
def test_default_sampler_is_the_published_scheduler(num_steps: int) -> None:
    sampler, _ = sampler_from_config({"_class_name": "DPMSolverMultistepScheduler"})
    assert sampler == SAMPLERS[DEFAULT_SAMPLER]
    assert_same(*pictures("pixart", num_steps, exact=False), tolerance=1e-6)


@pytest.mark.parametrize("case", ["pixart", "dpm-3", "single-2", "euler", "heun", "ddpm", "lcm"])
def test_given_timesteps(case: str) -> None:
    scheduler, sampler, schedule = both(*CASES[case])
    timesteps = [999, 839, 639, 499, 279, 119, 19]
    noise = seeded_noise(SHAPE, 1)()
    scheduler.set_timesteps(timesteps=timesteps)
    output = network("epsilon", schedule)
    reference = theirs(scheduler, noise, output, learned=False)
    levels = sampler.levels_at(schedule, timesteps=timesteps)
    assert_same(ours(sampler, levels, noise, output, "epsilon"), reference)


def test_one_step_of_a_distilled_network() -> None:
    scheduler, sampler, schedule = both(DDPMScheduler, NOT_CLIPPED)
    noise = seeded_noise(SHAPE, 1)()
    scheduler.set_timesteps(timesteps=[400])
    output = network("epsilon", schedule)
    levels = sampler.levels_at(schedule, timesteps=[400])
    assert_same(
        ours(sampler, levels, noise, output, "epsilon"),
        theirs(scheduler, noise, output, learned=False),
    )


def test_given_sigmas() -> None:
    scheduler, sampler, schedule = both(EulerDiscreteScheduler, {})
    sigmas = [80.0, 14.6, 5.0, 2.0, 0.7, 0.1, 0.0]
    noise = seeded_noise(SHAPE, 1)()
    scheduler.set_timesteps(sigmas=sigmas)
    output = network("epsilon", schedule)
    reference = theirs(scheduler, noise, output, learned=False)
    levels = sampler.levels_at(schedule, ratios=sigmas)
    assert_same(ours(sampler, levels, noise, output, "epsilon"), reference)


@pytest.mark.parametrize("case", CASES)
def test_config_is_read_and_written(case: str) -> None:
    scheduler, _, _ = both(*CASES[case])
    # as it stands in a published file, -Infinity included
    config = json.loads(json.dumps(dict(scheduler.config), default=str))
    sampler, schedule_config = sampler_from_config(
        config | {"_class_name": type(scheduler).__name__}
    )
    written = config_of(sampler, NoiseSchedule(schedule_config))
    again = type(scheduler).from_config(written)
    idle = {"timestep_spacing"} if case == "lcm" or "karras" in case else set()
    idle |= {"_class_name", "_use_default_values"}
    assert {k: v for k, v in again.config.items() if k not in idle} == {
        k: v for k, v in scheduler.config.items() if k not in idle
    }
    assert sampler_from_config(written) == (sampler, schedule_config)
