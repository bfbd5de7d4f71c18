"""Consistency distillation against a teacher whose path is known, and the prior of DreamBooth."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pictures import small_encoders_folder
from pixsigma.config import ScheduleConfig
from pixsigma.data.features import Batch
from pixsigma.diffusion.prediction import predicted
from pixsigma.diffusion.samplers import LCM
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError
from pixsigma.interfaces import TextFeatures
from pixsigma.training.distill import Distillation
from pixsigma.training.recipe import Recipe, read_recipe
from pixsigma.training.run import save_beside
from pixsigma.training.sections import DistillSection
from pixsigma.training.trainer import Trainer
from pixsigma.weights.folder import save_transformer
from pixsigma.weights.index import folder_guidance
from small import SIGMA, small_features, small_transformer

MEAN, STD = 0.7, 0.4
TEXT = TextFeatures(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))


def gaussian(schedule: NoiseSchedule) -> Any:
    """What data N(MEAN, STD²) answer, exactly: E[eps | x] = sigma (x - alpha m) / var(x)."""
    bars = schedule.alphas_cumprod.float()

    def answer(x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        a = bars[t.long()].view(-1, 1, 1, 1)
        away = (x - a.sqrt() * MEAN) / (a * STD**2 + 1 - a)
        if schedule.config.prediction_type == "sample":
            return MEAN + a.sqrt() * STD**2 * away
        return (1 - a).sqrt() * away

    return answer


class Student(nn.Module):
    """scale[t] x + shift[t]: enough for a Gaussian, and nothing more."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        teacher, t = gaussian(schedule), torch.arange(1000.0)
        zero, one = torch.zeros(1000, 1, 1, 1), torch.ones(1000, 1, 1, 1)
        shift = teacher(zero, t, zero).flatten()
        self.shift = nn.Parameter(shift)
        self.scale = nn.Parameter(teacher(one, t, zero).flatten() - shift)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        row = t.long()
        return self.scale[row].view(-1, 1, 1, 1) * x + self.shift[row].view(-1, 1, 1, 1)


def distillation(
    num: int,
    target: Any,
    teacher: Any = None,
    schedule: NoiseSchedule | None = None,
    **section: Any,
) -> Distillation:
    schedule = schedule or NoiseSchedule()
    return Distillation(
        section=DistillSection(num_timesteps=num, **section),
        schedule=schedule,
        teacher=teacher or gaussian(schedule),
        target=target,
        null=TEXT,
    )


def path(x: Tensor, schedule: NoiseSchedule, num: int) -> Tensor:
    """The teacher's own DDIM steps from timestep 999 to 0."""
    eps_of, size = gaussian(schedule), 1000 // num
    bars = schedule.alphas_cumprod.float()
    for start in range(999, 0, -size):
        a, b = bars[start], bars[max(start - size, 0)]
        eps = eps_of(x, torch.full((len(x),), start), TEXT.embeddings)
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    return x


def test_a_student_learns_to_jump_to_the_end_of_the_teachers_path() -> None:
    """From the teacher's own answer, which jumps to the mean of what may come instead."""
    torch.manual_seed(0)
    num, rng = 5, torch.Generator().manual_seed(0)
    schedule = NoiseSchedule(ScheduleConfig(prediction_type="sample"))
    student = Student(schedule)
    task = distillation(num, student, schedule=schedule, loss="l2", guidance=3.0)
    x = torch.randn(64, 1, 4, 4)
    text = TEXT.repeat_interleave(64 // len(TEXT.mask))
    late = torch.full((64,), 999)

    def error() -> float:
        jump = task.jump(student, x, late, text).detach()
        return float((jump - path(x, NoiseSchedule(), num)).norm() / (x * STD).norm())

    before = error()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(250):
        x0 = MEAN + STD * torch.randn(64, 1, 4, 4, generator=rng)
        task.loss(student, Batch(x0, text), rng).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert error() < 1e-3 < 0.4 < before


def test_guidance_moves_the_teacher_and_its_step_is_ddim() -> None:
    """cond + w (cond - uncond), where uncond is a teacher without the mean."""
    schedule = NoiseSchedule()
    plain = gaussian(schedule)

    def teacher(x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        return plain(x, t, text) if float(text.abs().sum()) else torch.zeros_like(x)

    task = distillation(50, plain, teacher, guidance=(2.0, 2.0))
    x, t = torch.randn(3, 1, 2, 2), torch.tensor([999, 519, 19])
    text = TextFeatures(torch.ones(3, 1, 1), torch.ones(3, 1, dtype=torch.bool))
    end = (t - 20).clamp(min=0)
    got = task.guided_step(x, t, end, text, torch.full((3,), 2.0))
    a, b = (schedule.alphas_cumprod.float()[i].view(-1, 1, 1, 1) for i in (t, end))
    eps = 3 * plain(x, t, text.embeddings)
    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    torch.testing.assert_close(got, b.sqrt() * x0 + (1 - b).sqrt() * eps, rtol=1e-4, atol=1e-4)


def test_the_consistency_function_is_that_of_the_sampler() -> None:
    schedule = NoiseSchedule()
    eps, x = gaussian(schedule), torch.randn(1, 1, 2, 2)
    t = torch.tensor([519])
    jump = distillation(50, eps).jump(eps, x, t, TEXT)
    level, end = schedule.level(519), schedule.level(0)
    output = eps(x, t, TEXT.embeddings)
    drawn, _ = LCM().step(
        lambda y, at: predicted(output, y, level, "epsilon"),
        None,
        x,
        (level, end),
        0,
        lambda: torch.zeros_like(x),
    )
    torch.testing.assert_close(jump, drawn)
    zero = torch.tensor([0])
    assert torch.equal(distillation(50, eps).jump(eps, x, zero, TEXT), x)


def test_times_are_those_of_the_published_grid() -> None:
    start, end = distillation(50, None).times(5000, torch.Generator().manual_seed(0))
    assert sorted(set(start.tolist())) == list(range(19, 1000, 20))
    assert torch.equal(end, (start - 20).clamp(min=0))


RECIPE = """
features = "{folder}/features.safetensors"
[model]
init_from = "{folder}/base"
[optimizer]
learning_rate = 1e-3
warmup_steps = 0
[run]
steps = 2
batch_size = 4
log_every = 1
device = "cpu"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few-steps")
    small_features(folder / "features.safetensors")
    save_transformer(small_transformer(), folder / "base" / "transformer")
    return folder


def recipe(folder: Path, more: str = "", **changes: Any) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(folder=folder) + more)
    return read_recipe(path, {key.replace("__", "."): value for key, value in changes.items()})


def test_a_student_is_trained_and_its_target_is_the_average(folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe(folder, "[distill]\n", run__ema_decay=0.5), tmp_path)
    task = trainer.distillation
    assert task is not None
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([500.0, 20.0])
    text = torch.randn(2, 3, SIGMA.caption_channels)
    teacher = task.teacher(x, t, text)
    assert torch.equal(task.target(x, t, text), teacher)
    list(trainer.run())
    assert torch.equal(task.teacher(x, t, text), teacher)
    with torch.no_grad():
        torch.testing.assert_close(task.target(x, t, text), trainer.averaged()(x, t, text))
        assert not torch.equal(trainer.model(x, t, text), teacher)


def test_a_student_is_drawn_without_guidance(folder: Path, tmp_path: Path) -> None:
    base = small_encoders_folder(tmp_path / "base")
    save_transformer(small_transformer(), base / "transformer")
    save_beside(Trainer(recipe(folder, "[distill]\n", base=str(base)), tmp_path), tmp_path)
    assert folder_guidance(tmp_path / "model") == 1.0


def test_lcm_lora_learns_from_the_model_beneath_it(folder: Path, tmp_path: Path) -> None:
    more = '[adapter]\nrank = 2\n[distill]\ntarget = "student"\nguidance = [3.0, 15.0]\n'
    trainer = Trainer(recipe(folder, more), tmp_path)
    task = trainer.distillation
    assert task is not None
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([500.0, 20.0])
    text = torch.randn(2, 3, SIGMA.caption_channels)
    list(trainer.run())
    with torch.no_grad():
        torch.testing.assert_close(task.teacher(x, t, text), small_transformer()(x, t, text))
        assert torch.equal(task.target(x, t, text), trainer.model(x, t, text))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_prior_adds_its_share_of_the_loss(folder: Path, tmp_path: Path) -> None:
    losses = []
    for weight in (0.5, 2.0):
        more = f'[prior]\nfeatures = "{folder}/features.safetensors"\nweight = {weight}\n'
        trainer = Trainer(recipe(folder, more), tmp_path / str(weight))
        losses.append(float(trainer.training_step()))
    alone = Trainer(recipe(folder), tmp_path / "alone")
    losses.append(float(alone.training_step()))
    prior = (losses[1] - losses[0]) / 1.5
    assert prior > 0
    assert losses[0] == pytest.approx(losses[2] + 0.5 * prior, rel=1e-4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[distill]\n[loss]\nmin_snr_gamma = 5.0\n", "leave out loss.min_snr_gamma"),
        ("[distill]\nguidance = [3.0, 2.0]\n", "two in order"),
        ("[distill]\nguidnace = 3.0\n", "is guidance meant"),
    ],
)
def test_contradictions_are_refused(folder: Path, more: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        recipe(folder, more)
