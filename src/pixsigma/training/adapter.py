"""Adapters in training: peft puts them on, and they leave in the names that others read."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixsigma._version import __version__
from pixsigma.errors import InputError, MissingExtraError
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.training.sections import AdapterSection
from pixsigma.weights.adapters import read_adapter
from pixsigma.weights.files import save_tensors, write_json
from pixsigma.weights.keymaps import DIFFUSERS

PARTED = {"attn.qkv": ("to_q", "to_k", "to_v"), "cross_attn.kv_linear": ("to_k", "to_v")}
"""Layers of a block that other layouts have in parts, each of which gets its own adapter."""

NAME = "default"
"""What peft calls an adapter in memory."""

FILES = "adapter_model.safetensors", "comfyui.safetensors"


class Parted(nn.Module):
    """A fused layer as the layers it was made of; their weights are its rows, not copies."""

    def __init__(self, fused: nn.Linear, names: tuple[str, ...]) -> None:
        super().__init__()
        num = len(names)
        rows = zip(names, fused.weight.chunk(num), fused.bias.chunk(num), strict=True)
        for name, weight, bias in rows:
            part = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            part.weight = nn.Parameter(weight.detach(), requires_grad=False)
            part.bias = nn.Parameter(bias.detach(), requires_grad=False)
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """As the fused layer."""
        return torch.cat([part(x) for part in self.children()], dim=-1)


def put_on(model: PixArtTransformer, section: AdapterSection) -> dict[str, str]:
    """Freeze the model and put a fresh adapter on it, which changes nothing yet.

    Returns our names of the layers that have it, to those of diffusers. Raises InputError for
    targets that no block has, MissingExtraError without peft.
    """
    peft = import_peft()
    model.requires_grad_(False)
    for block in model.blocks:
        for path, names in PARTED.items():
            fused = block.get_submodule(path)
            assert isinstance(fused, nn.Linear), f"{path} has an adapter already"
            block.set_submodule(path, Parted(fused, names))
    chosen = targeted(model, section)
    pattern = "|".join(re.escape(ours) for ours in chosen)
    peft.inject_adapter_in_model(peft_config(section, pattern), model, NAME)
    return chosen


def layers(model: PixArtTransformer) -> dict[str, str]:
    """Our names of the linear layers in the blocks, parted, to those of diffusers."""
    found = {}
    for name, module in model.named_modules():
        if not name.startswith("blocks.") or not isinstance(module, nn.Linear):
            continue
        whole, _, part = name.rpartition(".")
        table = next((names for path, names in PARTED.items() if whole.endswith(path)), None)
        key = name if table is None else whole
        theirs = DIFFUSERS.theirs_of(f"{key}.weight")[0 if table is None else table.index(part)]
        found[name] = theirs.removesuffix(".weight")
    return found


def targeted(model: PixArtTransformer, section: AdapterSection) -> dict[str, str]:
    """The layers that get an adapter, as `layers` names them; raises InputError."""
    names = layers(model)
    ends = sorted({theirs.split(".", 2)[2] for theirs in names.values()})
    unknown = [t for t in section.targets if not any(f".{end}".endswith(f".{t}") for end in ends)]
    if unknown:
        raise InputError(f"adapter.targets are ends of {', '.join(ends)}; got {', '.join(unknown)}")
    ours = {
        name: theirs
        for name, theirs in names.items()
        if any(theirs.endswith(f".{target}") for target in section.targets)
    }
    widths = {model.get_parameter(f"{name}.weight").shape[1] for name in ours}
    uneven = sorted(width for width in widths if width % section.rank)
    if section.kind == "oft" and uneven:
        raise InputError(
            f"the rank of oft is the side of its blocks and must divide every width: "
            f"{section.rank} does not divide {', '.join(map(str, uneven))}"
        )
    return ours


def peft_config(section: AdapterSection, pattern: str) -> Any:
    """peft's words for a section; `pattern` is a regular expression of whole names of layers."""
    peft = import_peft()
    rank, alpha = section.rank, section.alpha or section.rank
    match section.kind:
        case "lora" | "dora":
            # alpha as a float: peft only ever divides it
            dora = section.kind == "dora"
            return peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern, use_dora=dora)
        case "loha":
            return peft.LoHaConfig(r=rank, alpha=alpha, target_modules=pattern)
        case "lokr":
            return peft.LoKrConfig(r=rank, alpha=alpha, target_modules=pattern)
    return peft.OFTConfig(oft_block_size=rank, target_modules=pattern)


def sharing(model: PixArtTransformer, weights: Mapping[str, Tensor]) -> PixArtTransformer:
    """A copy with these weights in place of those of the same names; all others are shared."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(weights[name], requires_grad=False) if name in weights else p
        for name, p in model.named_parameters()
    }
    return copy.deepcopy(model, memo).eval()


def save_adapter(
    model: PixArtTransformer,
    names: Mapping[str, str],
    weights: Mapping[str, Tensor],
    section: AdapterSection,
    folder: Path,
    base: str | None,
) -> None:
    """Write `weights` of the model's adapter as peft, diffusers and ComfyUI read them.

    `names` is what `put_on` returned. The folder holds adapter_model.safetensors with
    adapter_config.json, and comfyui.safetensors. Raises OutputError.
    """
    peft = import_peft()
    state = peft.get_peft_model_state_dict(
        model, state_dict=dict(weights), adapter_name=NAME, save_embedding_layers=False
    )
    factor = re.compile(r"(.+?)\.((?:lora_|hada_|lokr_|oft_R).*)")
    tensors: dict[tuple[str, str], Tensor] = {}
    for key, tensor in state.items():
        match = factor.fullmatch(key)
        assert match is not None, f"{key} is of no adapter"
        tensors[names[match[1]], match[2]] = tensor.detach().cpu()
    config = peft_config(section, r"transformer_blocks\.\d+\.(.*\.)?" + ends_of(section))
    config.base_model_name_or_path, config.inference_mode = base, True
    # the config first: tensors alone would be read with another scale
    write_json(folder / "adapter_config.json", jsonable(config.to_dict()))
    peft_file, comfyui_file = (folder / name for name in FILES)
    save_tensors({f"base_model.model.{m}.{f}": t for (m, f), t in tensors.items()}, peft_file)
    told = {"software": f"pixsigma {__version__}"}
    if section.kind == "oft":
        save_tensors(differences(model, peft_file), comfyui_file, metadata=told)
    else:
        save_tensors(for_comfyui(tensors, section), comfyui_file, metadata=told)


def ends_of(section: AdapterSection) -> str:
    """A regular expression of the last part of targets' names."""
    return "(" + "|".join(re.escape(target) for target in section.targets) + ")"


def for_comfyui(
    tensors: Mapping[tuple[str, str], Tensor], section: AdapterSection
) -> dict[str, Tensor]:
    """Names that ComfyUI has for PixArt in diffusers' layout, with `alpha` and `dora_scale`."""
    alpha = float(section.alpha or section.rank)
    found: dict[str, Tensor] = {}
    for (module, factor), tensor in tensors.items():
        key = f"transformer.{module}"
        if factor.startswith("lora_magnitude_vector"):
            found[f"{key}.dora_scale"] = tensor[:, None]
            continue
        whole = factor == "lokr_w1" and (module, "lokr_w2") in tensors
        # without a rank in the file nothing would scale it there
        found[f"{key}.{factor}"] = tensor * (alpha / section.rank) if whole else tensor
        if not whole and factor != "lokr_w2":
            found[f"{key}.alpha"] = torch.tensor(alpha)
    return found


def differences(model: PixArtTransformer, file: Path) -> dict[str, Tensor]:
    """Whole differences of the weights: ComfyUI turns outputs, and has no word for peft's OFT."""
    fused = merged_back(model)
    found: dict[str, Tensor] = {}
    weights = fused.state_dict()
    for patch in read_adapter(file, fused).patches:
        target = patch.target
        base = weights[target.key][target.start : target.stop].cpu()
        part = DIFFUSERS.theirs_of(target.key)[target.start // (target.stop - target.start)]
        found[f"transformer.{part.removesuffix('.weight')}.diff"] = patch.update.delta(base)
    return found


def merged_back(model: PixArtTransformer) -> PixArtTransformer:
    """The frozen model beneath an adapter, its fused layers whole again."""
    plain = {
        name.replace(".base_layer", ""): p
        for name, p in model.named_parameters()
        if not p.requires_grad
    }
    with torch.device("meta"):
        fused = PixArtTransformer(model.config)
    state = {}
    for key in fused.state_dict():
        layer, _, kind = key.rpartition(".")
        names = next((names for path, names in PARTED.items() if layer.endswith(path)), None)
        parts = [key] if names is None else [f"{layer}.{name}.{kind}" for name in names]
        state[key] = torch.cat([plain[part].detach() for part in parts])
    fused.load_state_dict(state, assign=True)
    return fused


def jsonable(value: Any) -> Any:
    """Sets as sorted lists and names for enumerations, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, set | list | tuple):
        inner = [jsonable(v) for v in value]
        return sorted(inner) if isinstance(value, set) else inner
    return getattr(value, "value", value)


def import_peft() -> Any:
    """peft; raises MissingExtraError."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            "adapters are trained with peft: pip install 'pixsigma[train]'"
        ) from error
    return peft
