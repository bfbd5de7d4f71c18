"""Adapters that peft made and wrote, on diffusers' network, against ours from peft's own files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.test_transformer import outputs, pair

from pixsigma.adapters import merge
from pixsigma.weights.adapters import read_adapter

TARGETS = [
    *("to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("proj", "proj_out", "linear", "linear_1", "linear_2"),
]
"""What the authors' script trains: all but the tables."""

PATTERNS: dict[str, Any] = {
    "alpha_pattern": {"attn1.to_q": 7, r"transformer_blocks\.1\.ff\.net\.2": 2},
    "rank_pattern": {"attn2.to_k": 2, "proj_out": 5},
}


def adapted_pair(folder: Path, config: Any) -> tuple[Any, Any]:
    """peft's network with a random adapter, saved to `folder`, and our network of the same base."""
    from peft import get_peft_model

    theirs, ours = pair()
    torch.manual_seed(3)
    model = get_peft_model(theirs, config).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            # Added, for DoRA's lengths; small, or a sharp softmax magnifies the last bit.
            weight.data += 0.04 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model, ours


def configs() -> dict[str, Any]:
    from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig

    lora = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "init_lora_weights": "gaussian"}
    lycoris = {"r": 3, "alpha": 5, "target_modules": TARGETS}
    # peft itself cannot turn the input of the patches' convolution
    linear = {"target_modules": [name for name in TARGETS if name != "proj"]}
    return {
        "lora": LoraConfig(**lora),
        "patterns": LoraConfig(**lora, **PATTERNS),
        "rslora": LoraConfig(**lora, use_rslora=True),
        "dora": LoraConfig(**lora, use_dora=True),
        "loha": LoHaConfig(**lycoris),
        "loha-cores": LoHaConfig(**lycoris, use_effective_conv2d=True),
        "lokr": LoKrConfig(**lycoris),
        "lokr-both": LoKrConfig(**lycoris, decompose_both=True, decompose_factor=4),
        "lokr-whole": LoKrConfig(**(lycoris | {"r": 40, "alpha": 10})),
        "lokr-cores": LoKrConfig(**lycoris, use_effective_conv2d=True, decompose_factor=2),
        "oft": OFTConfig(oft_block_size=4, **linear),
        "oft-inverse": OFTConfig(oft_block_size=4, use_cayley_neumann=False, **linear),
        "oft-shared": OFTConfig(oft_block_size=4, block_share=True, **linear),
        "oft-three": OFTConfig(oft_block_size=4, num_cayley_neumann_terms=3, **linear),
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("lora", "LoRA"),
        ("patterns", "LoRA"),
        ("rslora", "LoRA"),
        ("dora", "DoRA"),
        ("loha", "LoHa"),
        ("loha-cores", "LoHa"),
        ("lokr", "LoKr"),
        ("lokr-both", "LoKr"),
        ("lokr-whole", "LoKr"),
        ("lokr-cores", "LoKr"),
        ("oft", "OFT"),
        ("oft-inverse", "OFT"),
        ("oft-shared", "OFT"),
        ("oft-three", "OFT"),
    ],
)
def test_peft(tmp_path: Path, kind: str, name: str) -> None:
    theirs, ours = adapted_pair(tmp_path, configs()[kind])
    plain = outputs(theirs, ours, 8, 6)
    adapter = read_adapter(tmp_path, ours)
    merge(ours, ((adapter, 1.0),), {})
    assert outputs(theirs, ours, 8, 6) <= 1e-5 < 1e-2 < plain
    report = adapter.report
    assert (report.dialect, report.names, report.kinds) == ("peft", ("diffusers",), (name,))
    assert report.num_modules == 3 * 10 + (6 if name == "OFT" else 7) and report.alpha == "config"


def test_a_file_beside_its_config_is_scaled_as_the_folder(tmp_path: Path) -> None:
    theirs, ours = adapted_pair(tmp_path, configs()["rslora"])
    adapter = read_adapter(tmp_path / "adapter_model.safetensors", ours)
    merge(ours, ((adapter, 1.0),), {})
    assert outputs(theirs, ours, 8, 6) <= 1e-5


def test_the_metadata_of_diffusers_scales(tmp_path: Path) -> None:
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, _pack_dict_with_prefix
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = configs()["patterns"]
    theirs, ours = adapted_pair(tmp_path, config)
    prefix = "base_model.model."
    state = {
        "transformer." + key.removeprefix(prefix): value.contiguous()
        for key, value in get_peft_model_state_dict(theirs).items()
    }
    told = _pack_dict_with_prefix(config.to_dict(), "transformer")
    file = tmp_path / "pytorch_lora_weights.safetensors"
    metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps(told, default=list)}
    save_file(state, str(file), metadata=metadata)
    adapter = read_adapter(file, ours)
    merge(ours, ((adapter, 1.0),), {})
    assert outputs(theirs, ours, 8, 6) <= 1e-5
    assert (adapter.report.dialect, adapter.report.alpha) == ("diffusers", "config")
