"""The sections of a recipe: frozen values, their defaults, and what contradicts what."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pixsigma.config import KVCompression
from pixsigma.hints import KIND, PICTURE

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
"""Every linear layer of a block, in diffusers' names."""


class Section(BaseModel):
    """Part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KVSection(Section):
    """Key-value compression of some blocks; names as in `KVCompression`."""

    layers: tuple[int, ...]
    ratio: int = 2


class ModelSection(Section):
    """The transformer to train; names as in `TransformerConfig`.

    With `init_from`, what is left out is as there; a fresh model needs the first six told.
    """

    num_layers: int | None = None
    num_attention_heads: int | None = None
    attention_head_dim: int | None = None
    caption_channels: int | None = None
    sample_size: int | None = None
    interpolation_scale: float | None = None
    qk_norm: bool | None = None
    kv_compression: KVSection | None = None
    """Where `init_from` has none, it is inserted as an average (Σ, section 3.3)."""
    init_from: str | None = None
    """A model to start from (as `--model`): its positions are interpolated to `sample_size`."""

    @model_validator(mode="after")
    def _whole(self) -> "ModelSection":
        fresh = set(ModelSection.model_fields) - {"qk_norm", "kv_compression", "init_from"}
        missing = sorted(name for name in fresh if getattr(self, name) is None)
        if self.init_from is None and missing:
            raise ValueError(f"without init_from a model needs {', '.join(missing)}")
        return self

    @property
    def told(self) -> dict[str, Any]:
        """What the recipe says of the network, as `TransformerConfig` takes it."""
        told = self.model_dump(exclude={"init_from"}, exclude_none=True)
        if self.kv_compression is not None:
            told["kv_compression"] = KVCompression(**told["kv_compression"])
        return told


class AdapterSection(Section):
    """What is trained in place of the weights: LoRA or one of its kin, by peft."""

    kind: Literal["lora", "dora", "loha", "lokr", "oft"] = "lora"
    rank: int = Field(default=16, gt=0)
    """R; for oft the side of the blocks that are turned, a divisor of every layer's width."""
    alpha: float | None = Field(default=None, gt=0)
    """What is learned counts alpha / rank times; none is the rank itself. Not for oft."""
    targets: tuple[str, ...] = ADAPTED
    """Ends of diffusers' names of linear layers in the blocks, such as `attn1.to_q` or `to_q`."""

    @model_validator(mode="after")
    def _fits_together(self) -> "AdapterSection":
        if self.kind == "oft" and self.alpha is not None:
            raise ValueError("oft turns weights and scales nothing: leave alpha out")
        if not self.targets:
            raise ValueError("targets must name at least one layer")
        return self


class ControlSection(Section):
    """Train a ControlNet beside the model, which stays as it is (PixArt-δ, section 4)."""

    kind: str = Field(default="edges", pattern=KIND)
    """What it is to follow: the hints that the features were prepared with. `picture` is an image
    prompt, which has keys and values of its own in place of copied blocks (IP-Adapter)."""
    num_copied: int | None = Field(default=None, gt=0)
    """Blocks that are copied; none is 13, or half of a smaller model. Not for image prompts."""
    num_tokens: int | None = Field(default=None, gt=0)
    """Tokens that an image prompt makes of a picture; none is 16. Only for image prompts."""

    @model_validator(mode="after")
    def _numbers_are_of_the_kind(self) -> "ControlSection":
        wrong = "num_copied" if self.kind == PICTURE else "num_tokens"
        if getattr(self, wrong) is not None:
            raise ValueError(
                "num_copied is for ControlNets and num_tokens for image prompts (kind "
                f"{PICTURE!r}): leave {wrong} out for kind {self.kind!r}"
            )
        return self


class PriorSection(Section):
    """Pictures of the class beside those of the subject, so that the class is kept (DreamBooth).

    Ruiz et al. 2023, eq. 2: every step reads as many of them, and adds their loss.
    """

    features: Path
    """What the model itself drew of the class, prepared as the pictures of the subject."""
    weight: float = Field(default=1.0, gt=0)


class DistillSection(Section):
    """Latent consistency distillation (Luo et al. 2023): few steps, guidance inside.

    With `[adapter]` it trains LCM-LoRA.
    """

    teacher: str | None = None
    """A model (as `--model`); none is `model.init_from`."""
    guidance: float | tuple[float, float] = 4.5
    """w of cond + w (cond - uncond), where pipelines say 1 + w; of two, one is drawn a picture."""
    num_timesteps: int = Field(default=50, gt=0)
    """Of the teacher's DDIM grid; a step of it is the distance between two times compared."""
    loss: Literal["huber", "l2"] = "huber"
    huber_c: float = Field(default=0.001, gt=0)
    target: Literal["ema", "student"] = "ema"
    """Whose answer at the earlier time is matched: the run's average, or the student of now."""

    @property
    def range(self) -> tuple[float, float]:
        """Least and most of w."""
        return self.guidance if isinstance(self.guidance, tuple) else (self.guidance,) * 2

    @model_validator(mode="after")
    def _range_is_in_order(self) -> "DistillSection":
        if not 0 <= self.range[0] <= self.range[1]:
            raise ValueError(f"guidance is one number from 0 on or two in order: {self.guidance}")
        return self


class LossSection(Section):
    """The objective."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network learns to predict; epsilon as published. Where a run is short, v tells
    more at high noise, where an error of eps is x0's divided by sigma / alpha."""
    min_snr_gamma: float | None = None
    """Hang et al. 2023; none is the published loss."""
    timesteps: Literal["uniform", "stratified", "logit-normal"] = "uniform"
    """Logit-normal (Esser et al. 2024) sees the middle of the schedule more often."""
    timestep_shift: float = Field(default=1.0, gt=0)
    """Above 1 noisier times come more often, half of them from s / (1 + s) on (Esser et al.)."""
    noise_offset: float = Field(default=0.0, ge=0)
    """Deviation of noise that is shared by all pixels of a channel (Guttenberg 2023)."""
    outside_mask: float | None = Field(default=None, ge=0, le=1)
    """Share that counts of the squared error where a picture's mask is black; none: no masks."""


class OptimizerSection(Section):
    """How weights move. Muon serves the matrices of blocks and their copies, AdamW all else."""

    name: Literal["adamw", "adamw8bit", "schedulefree", "muon", "came", "adafactor"] = "adamw"
    """adamw8bit needs bitsandbytes and a GPU; schedulefree (Defazio et al. 2024) makes its own
    average, which is what is kept of the run."""
    learning_rate: float = Field(gt=0)
    scale_rate: Literal["no", "sqrt", "linear"] = "no"
    """Multiply rates by (batch_size / 256), or by its root as the authors' code does."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    """After warm-up: stable, then linear to 0 over `cooldown_share`; a cosine to 0; or stable."""
    warmup_steps: int = Field(default=100, ge=0)
    cooldown_share: float = Field(default=0.25, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _no_schedule_means_none(self) -> "OptimizerSection":
        if self.name == "schedulefree" and self.schedule != "constant":
            raise ValueError(
                f'schedulefree has no schedule: say schedule = "constant", got {self.schedule}'
            )
        return self

    def factor(self, batch_size: int) -> float:
        """By what learning rates are multiplied."""
        return (batch_size / 256) ** {"no": 0.0, "sqrt": 0.5, "linear": 1.0}[self.scale_rate]

    def scaled(self, batch_size: int) -> "OptimizerSection":
        """With the rates that are used."""
        factor = self.factor(batch_size)
        rates = {"learning_rate": self.learning_rate * factor}
        rates["matrix_learning_rate"] = self.matrix_learning_rate * factor
        return self.model_copy(update=rates)


class RunSection(Section):
    """Length, batches and what is kept."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    """Pictures a step, over all processes."""
    accumulate: int = Field(default=1, gt=0)
    """Parts that a process's share is cut into: less memory, the same step."""
    seed: int = 0
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    long_captions: float | None = Field(default=None, ge=0, le=1)
    """Share of long captions where a picture has both kinds; none draws among all alike."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    ema_std: float | None = Field(default=None, gt=0, le=0.28)
    """Width of a power-function average as a share of the run (Karras et al. 2024, "EDM2"), in
    place of `ema_decay`; 0.05 to 0.1 is usual."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass: less memory, a third slower."""
    fp32_attention: bool = False
    """Self-attention in float32 under mixed precision, as the authors trained."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    """Told every report beside metrics.jsonl; None is tensorboard where it is installed."""
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    shard: bool = False
    """Leave each of several processes a part of weights, optimiser and average (FSDP2)."""
    checkpoint_every: int = Field(default=200, gt=0)
    keep_checkpoints: int = Field(default=1, gt=0)
    log_every: int = Field(default=20, gt=0)

    @model_validator(mode="after")
    def _parts_are_equal(self) -> "RunSection":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate: {self.batch_size}, {self.accumulate}"
            )
        return self


class ValidationSection(Section):
    """What is drawn and measured on the way, with the averaged weights."""

    every: int = Field(default=500, gt=0)
    prompts: tuple[str, ...] = ()
    """Drawn with fixed seeds; needs `base`."""
    num_inference_steps: int = Field(default=20, gt=0)
    guidance_scale: float = Field(default=4.5, ge=0)
    features: Path | None = None
    """Held-out pictures, prepared as those of training."""
