"""Several processes: who they are, weights that lie in parts over them, one end for all."""

import atexit
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from pixsigma.errors import InputError, MissingExtraError
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.sections import RunSection

T = TypeVar("T")

FOREIGN = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What `accelerate launch` sets for engines that would take the model out of our hands."""


def start(run: RunSection, out: Path) -> Accelerator:
    """This process among those that `accelerate launch` or torchrun began: alone by default.

    Raises MissingExtraError for a tracker that is not installed, InputError for another engine.
    """
    trackers = trackers_of(run)
    for variable, engine in FOREIGN.items():
        if os.environ.get(variable, "").lower() == "true":
            raise InputError(
                f"accelerate is told to use {engine}; leave it out of accelerate's settings: "
                "run.shard = true of the recipe parts the weights among the processes"
            )
    # the stages of a chain are runs in one process, each with its own precision
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        cpu=run.device == "cpu",
        mixed_precision=run.mixed_precision,
        log_with=trackers or None,
        project_dir=str(out),
    )
    if run.shard and accelerator.num_processes == 1:
        raise InputError(
            "run.shard parts the weights among several processes, there is one: begin with "
            "torchrun --nproc_per_node 2 -m pixsigma train …, or leave it out"
        )
    if accelerator.num_processes > 1:
        atexit.unregister(end)
        atexit.register(end)
    return accelerator


def trackers_of(run: RunSection) -> list[str]:
    """The trackers that a run tells; raises MissingExtraError for one that is not installed."""
    if run.trackers is None:
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    for name in run.trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"run.trackers names {name}: pip install {name}, or leave it")
    return list(run.trackers)


def end() -> None:
    """Leave the group: a process that exits inside its group's threads is aborted."""
    PartialState().destroy_process_group()


def shard(model: PixArtTransformer, accelerator: Accelerator) -> None:
    """Leave every process its part of each weight; whole ones are gathered block by block.

    FSDP2 as torch has it: accelerate knows it on accelerators only, and the same lines serve CPUs.
    Raises InputError where torch is older than 2.6.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise InputError(f"run.shard needs torch 2.6, here is {torch.__version__}") from error
    # `unpatchify` returns a view, which nothing writes into
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = torch.distributed.device_mesh.init_device_mesh(
        accelerator.device.type, (accelerator.num_processes,)
    )
    for block in model.blocks:
        # texts are read before the first block: these weights are asked for outside of theirs
        fully_shard(block.get_submodule("cross_attn.kv_linear"), mesh=mesh)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def under_autocast(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The same module, computing in the run's precision as `Accelerator.prepare` would have it."""
    plain = model.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        with accelerator.autocast():
            return plain(*arguments, **options)

    model.forward = forward
    return model


@contextmanager
def not_yet_summed(accelerator: Accelerator, network: nn.Module) -> Iterator[None]:
    """A backward pass whose gradients stay in this process, for the last part to sum."""
    when: Any = getattr(network, "set_requires_gradient_sync", None)
    if when is None:
        with accelerator.no_sync(network):
            yield
        return
    when(False)
    try:
        yield
    finally:
        when(True)


def whole(value: T, keep: bool = True) -> T:
    """A nest of states with its tensors whole; every process must ask, in the same order.

    Without `keep` nothing is kept of tensors that lie in parts.
    """
    found: Any = value
    if isinstance(value, DTensor):
        full = value.full_tensor()
        found = full.cpu() if keep else full.new_empty(0)
    elif isinstance(value, dict):
        found = {key: whole(inner, keep) for key, inner in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(whole(inner, keep) for inner in value)
    return found


def like(value: Tensor, place: Tensor) -> Tensor:
    """A whole tensor that lies as `place` does: in parts, or as it is.

    Of a part's statistics, which have another shape, every process has all.
    """
    if not isinstance(place, DTensor) or value.ndim == 0:
        return value
    same = value.shape == place.shape
    layout = place.placements if same else [Replicate()] * place.device_mesh.ndim
    value = value.to(place.device_mesh.device_type)
    return distribute_tensor(value, place.device_mesh, layout, src_data_rank=None)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a whole state into an optimiser whose weights may lie in parts."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {
            key: like(value, weights[number]) if isinstance(value, Tensor) else value
            for key, value in kept.items()
        }
        for number, kept in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


class Agreement:
    """Whether all processes stop after this step: one that wishes it takes the others along.

    The answer comes a step late, so that no step waits for it.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked: Tensor | None = None

    def __call__(self, wish: bool) -> bool:
        """To be asked by every process before every step."""
        if self.accelerator.num_processes == 1:
            return wish
        before = self.asked
        mine = torch.tensor(float(wish), device=self.accelerator.device)
        summed = self.accelerator.reduce(mine, "sum")
        assert isinstance(summed, Tensor), "a tensor in, a tensor out"
        self.asked = summed
        return before is not None and bool(before > 0)
