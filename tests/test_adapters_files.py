"""Adapters' files: every dialect by its keys, scales, and refusals in the words of the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.small import KINDS, SIGMA, small_transformer
from torch import Tensor

from pixsigma.adapters import merge
from pixsigma.errors import CorruptWeightsError, MismatchError, MissingWeightsError
from pixsigma.weights.adapter_names import DIALECTS, NameTable
from pixsigma.weights.adapters import Adapter, adapter_file, read_adapter, scaling_of

WIDTH, R = SIGMA.width, 3
MODULES = {
    "blocks.1.attn.qkv": "transformer_blocks.1.attn1.to_k",
    "blocks.0.cross_attn.kv_linear": "transformer_blocks.0.attn2.to_v",
    "blocks.0.cross_attn.q_linear": "transformer_blocks.0.attn2.to_q",
    "blocks.1.attn.proj": "transformer_blocks.1.attn1.to_out.0",
    "blocks.0.mlp.fc1": "transformer_blocks.0.ff.net.0.proj",
    "x_embedder.proj": "pos_embed.proj",
    "t_block.1": "adaln_single.linear",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "final_layer.linear": "proj_out",
}
"""Ours to one of theirs, for each kind of place."""

ROWS = {"to_k": slice(WIDTH, 2 * WIDTH), "to_v": slice(WIDTH, 2 * WIDTH)}
"""Of what we have fused, in this table's two cases."""

SPLIT = {"blocks.1.attn.qkv": "blocks.1.attn.qkv.1", "blocks.0.cross_attn.kv_linear": "1"}
SPLIT["blocks.0.cross_attn.kv_linear"] = "blocks.0.cross_attn.kv_linear.1"


def random(*shape: int) -> Tensor:
    return torch.randn(shape) / 4


def base(ours: str) -> Tensor:
    return small_transformer().state_dict()[f"{ours}.weight"]


def rows_of(theirs: str) -> slice:
    return ROWS.get(theirs.rpartition(".")[2], slice(None))


def written(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    file = folder / "style.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(file), metadata=metadata or None)
    return file


def read(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> Adapter:
    return read_adapter(written(folder, tensors, **metadata), small_transformer())


def merged(adapter: Adapter) -> dict[str, Tensor]:
    network = small_transformer()
    merge(network, ((adapter, 1.0),), {})
    return network.state_dict()


def check(folder: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> Adapter:
    """Read, merge, and compare every weight; those not expected must be as before."""
    adapter = read(folder, tensors)
    got, plain = merged(adapter), small_transformer().state_dict()
    for key, weight in plain.items():
        torch.testing.assert_close(got[key], expected.get(key, weight), rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(plain[key], weight) for key, weight in expected.items())
    return adapter


def lora(weight: Tensor) -> tuple[Tensor, Tensor]:
    """down, up for a weight."""
    down = random(R, *weight.shape[1:])
    return down, random(weight.shape[0], R, *[1] * (weight.ndim - 2))


def delta(down: Tensor, up: Tensor, shape: Any) -> Tensor:
    return (up.flatten(1) @ down.flatten(1)).reshape(shape)


Key = Callable[[str, str], str]
"""Names of a module, ours and theirs, to what a file puts before the factors."""


def flat(prefix: str, pick: int) -> Key:
    return lambda *names: prefix + names[pick].replace(".", "_")


def dotted(prefix: str, pick: int) -> Key:
    return lambda *names: prefix + names[pick]


def omi(prefix: str, separator: str = ".") -> Key:
    return lambda ours, _: prefix + SPLIT.get(ours, ours).replace(".", separator)


AB = ("lora_A.weight", "lora_B.weight")
DOWN_UP = ("lora_down.weight", "lora_up.weight")
FILES: dict[str, tuple[str, Key, tuple[str, str], float | None]] = {
    "peft": ("peft", dotted("base_model.model.", 1), AB, None),
    "peft-unet": ("peft", dotted("unet.base_model.model.", 1), AB, None),
    "peft-ours": ("peft", dotted("base_model.model.", 0), AB, None),
    "peft-in-memory": (
        "peft",
        dotted("base_model.model.", 1),
        ("lora_A.default.weight", "lora_B.default.weight"),
        None,
    ),
    "diffusers": ("diffusers", dotted("transformer.", 1), AB, None),
    "diffusers-unet": ("diffusers", dotted("unet.", 1), AB, None),
    "diffusers-older": (
        "diffusers",
        dotted("transformer.", 1),
        ("lora.down.weight", "lora.up.weight"),
        None,
    ),
    "kohya": ("kohya", flat("lora_unet_", 1), DOWN_UP, 5.0),
    "kohya-ours": ("kohya", flat("lora_unet_", 0), DOWN_UP, 5.0),
    "onetrainer": ("OneTrainer", omi("transformer."), DOWN_UP, 5.0),
    "onetrainer-inner": ("OneTrainer", dotted("lora_transformer.", 1), DOWN_UP, 5.0),
    "onetrainer-kohya": ("OneTrainer", flat("lora_transformer_", 1), DOWN_UP, 5.0),
    "lycoris": ("LyCORIS", flat("lycoris_", 1), DOWN_UP, 5.0),
    "lycoris-ours": ("LyCORIS", flat("lycoris_", 0), DOWN_UP, 5.0),
    "comfy": ("ComfyUI", dotted("diffusion_model.", 0), AB, None),
    "comfy-theirs": ("ComfyUI", dotted("diffusion_model.", 1), DOWN_UP, 5.0),
    "bare": ("bare", dotted("", 1), AB, None),
    "bare-ours": ("bare", dotted("", 0), DOWN_UP, 5.0),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_dialect(tmp_path: Path, kind: str) -> None:
    dialect, key, (down_name, up_name), alpha = FILES[kind]
    whole = "ours" in kind or kind == "comfy"
    torch.manual_seed(5)
    tensors, expected = {}, {}
    for ours, theirs in MODULES.items():
        weight, rows = base(ours), slice(None) if whole else rows_of(theirs)
        down, up = lora(weight[rows])
        name = key(ours, theirs)
        tensors |= {f"{name}.{down_name}": down, f"{name}.{up_name}": up}
        if alpha:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        weight[rows] += (alpha / R if alpha else 1) * delta(down, up, weight[rows].shape)
        expected[f"{ours}.weight"] = weight
    report = check(tmp_path, tensors, expected).report
    assert report.dialect == dialect
    assert report.kinds == ("LoRA",) and report.ranks == (R,)
    assert report.num_modules == len(MODULES)
    assert report.alpha == ("file" if alpha else "none")


def test_names_of_diffusers_before_peft(tmp_path: Path) -> None:
    expected, tensors = {}, {}
    for ours, name in (("attn.proj", "to_out_lora"), ("attn.qkv", "to_q_lora")):
        weight = base(f"blocks.0.{ours}")
        rows = slice(0, WIDTH)
        down, up = lora(weight[rows])
        start = f"unet.transformer_blocks.0.attn1.processor.{name}"
        tensors |= {f"{start}.down.weight": down, f"{start}.up.weight": up}
        weight[rows] += up @ down
        expected[f"blocks.0.{ours}.weight"] = weight
    check(tmp_path, tensors, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_means_two_modules(kind: str) -> None:
    table = NameTable(small_transformer(KINDS[kind]))
    for dialect in DIALECTS:
        meant: dict[str, set[Any]] = {}
        for names in dialect.names:
            for name, target in table.tables[names].items():
                key = dialect.prefix + name.replace(".", dialect.separator)
                meant.setdefault(key, set()).add(target)
        assert meant and all(len(found) == 1 for found in meant.values()), dialect
        for key, (target,) in meant.items():
            place = table.find(f"{key}.lora_down.weight")
            assert place is not None and place.target == target and place.factor == "lora_down"
            assert dialect.prefix == "" or place.dialect == dialect.name


def test_every_layer_can_be_adapted() -> None:
    network = small_transformer(KINDS["alpha"])
    layers = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    for names in ("official", "diffusers"):
        assert {t.key for t in NameTable(network).tables[names].values()} == layers


def dora(weight: Tensor, lengths: Tensor) -> Tensor:
    axes = [a for a in range(weight.ndim) if lengths.shape[a] == 1]
    return weight * lengths / (weight**2).sum(dim=axes, keepdim=True).sqrt()


@pytest.mark.parametrize("ours", ["blocks.0.mlp.fc2", "x_embedder.proj", "blocks.0.attn.qkv"])
@pytest.mark.parametrize("axis", [0, 1])
def test_lengths_along_either_axis(tmp_path: Path, ours: str, axis: int) -> None:
    weight = base(ours)
    down, up = lora(weight)
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    lengths = 1 + torch.rand(shape)
    name = "lora_transformer_" + ours.replace(".", "_")
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(1.5),
        f"{name}.dora_scale": lengths,
    }
    changed = weight + 1.5 / R * delta(down, up, weight.shape)
    adapter = check(tmp_path, tensors, {f"{ours}.weight": dora(changed, lengths)})
    assert adapter.report.kinds == ("DoRA",)


@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH)])
@pytest.mark.parametrize("end", ["", ".weight", ".default.weight"])
def test_lengths_of_peft(tmp_path: Path, shape: tuple[int, ...], end: str) -> None:
    weight = base("blocks.0.attn.qkv")
    rows = slice(2 * WIDTH, None)
    down, up = lora(weight[rows])
    lengths = 1 + torch.rand(WIDTH)
    name = "transformer.transformer_blocks.0.attn1.to_v"
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    tensors[f"{name}.lora_magnitude_vector{end}"] = lengths.reshape(shape)
    weight[rows] = dora(weight[rows] + up @ down, lengths[:, None])
    check(tmp_path, tensors, {"blocks.0.attn.qkv.weight": weight})


def test_a_core_between(tmp_path: Path) -> None:
    weight = base("x_embedder.proj")
    down, mid, up = random(R, 4, 1, 1), random(R, R, 2, 2), random(WIDTH, R, 1, 1)
    by_running = torch.nn.functional.conv2d(
        torch.nn.functional.conv2d(torch.eye(4 * 4).reshape(16, 4, 2, 2), down), mid
    )
    columns = torch.nn.functional.conv2d(by_running, up).reshape(16, WIDTH)
    name = "lora_unet_pos_embed_proj"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    tensors[f"{name}.lora_mid.weight"] = mid
    check(tmp_path, tensors, {"x_embedder.proj.weight": weight + columns.T.reshape(weight.shape)})


def test_loha_and_lokr_of_lycoris(tmp_path: Path) -> None:
    torch.manual_seed(6)
    hada = {f"w{i}_{ab}": random(*s) for i in (1, 2) for ab, s in (("a", (72, 2)), ("b", (2, 72)))}
    first = {"w1": random(2, 4), "w2_a": random(144, 2), "w2_b": random(2, 18)}
    whole = {"w1": random(8, 2), "w2": random(9, 2, 2, 2)}
    q, fc1, x = "transformer_blocks_0_attn2_to_q", "transformer_blocks_0_ff_net_0_proj", "pos_embed"
    tensors = {f"lycoris_{q}.hada_{k}": v for k, v in hada.items()}
    tensors |= {f"lycoris_{fc1}.lokr_{k}": v for k, v in first.items()}
    tensors |= {f"lycoris_{x}_proj.lokr_{k}": v for k, v in whole.items()}
    # LyCORIS writes an alpha for whole matrices too, and does not scale them by it.
    tensors |= {f"lycoris_{n}.alpha": torch.tensor(5.0) for n in (q, fc1, f"{x}_proj")}
    elementwise = (hada["w1_a"] @ hada["w1_b"]) * (hada["w2_a"] @ hada["w2_b"])
    large = first["w2_a"] @ first["w2_b"]
    blocks = [[first["w1"][i, j] * large for j in range(4)] for i in range(2)]
    kron = torch.cat([torch.cat(row, dim=1) for row in blocks])
    patch = torch.einsum("ab,cdkl->acbdkl", whole["w1"], whole["w2"]).reshape(72, 4, 2, 2)
    expected = {
        "blocks.0.cross_attn.q_linear.weight": base("blocks.0.cross_attn.q_linear")
        + 2.5 * elementwise,
        "blocks.0.mlp.fc1.weight": base("blocks.0.mlp.fc1") + 2.5 * kron,
        "x_embedder.proj.weight": base("x_embedder.proj") + patch,
    }
    report = check(tmp_path, tensors, expected).report
    assert report.kinds == ("LoHa", "LoKr") and report.ranks == (2,)


GOOD = "transformer_blocks.0.attn1.to_q"


def good(name: str = f"base_model.model.{GOOD}", rank: int = R) -> dict[str, Tensor]:
    return {
        f"{name}.lora_A.weight": random(rank, WIDTH),
        f"{name}.lora_B.weight": random(WIDTH, rank),
    }


BAD = {
    "another model": (
        good("lora_unet_down_blocks_0_attentions_0_proj_in"),
        r"2 of .* have no place; is it for this model, which has 2 blocks of width 72",
    ),
    "too deep": (good() | good("base_model.model.transformer_blocks.7.attn1.to_q"), r"blocks\.7\."),
    "a bias": (good() | {f"base_model.model.{GOOD}.lora_B.bias": random(WIDTH)}, "lora_B.bias"),
    "T5": (
        good() | good("lora_te_encoder_block_0_layer_0_SelfAttention_q"),
        "changes the text encoder too: 2 tensors such as lora_te_encoder",
    ),
    "two ranks": (
        good() | {f"base_model.model.{GOOD}.lora_A.weight": random(R + 1, WIDTH)},
        rf"{GOOD}: lora_down \(4, 72\), lora_up \(72, 3\) for a weight of \(72, 72\)",
    ),
    "another width": (
        good() | {f"base_model.model.{GOOD}.lora_A.weight": random(R, 64)},
        r"together they make \(72, 64\)",
    ),
    "turned around": (
        {
            "diffusion_model.blocks.0.mlp.fc1.lora_A.weight": random(R, 4 * WIDTH),
            "diffusion_model.blocks.0.mlp.fc1.lora_B.weight": random(WIDTH, R),
        },
        r"together they make \(72, 288\)",
    ),
    "a half": ({f"{GOOD}.lora_A.weight": random(R, WIDTH)}, r"lora_down \(3, 72\) for a weight"),
    "two kinds": (good() | {f"base_model.model.{GOOD}.lokr_w1": random(2, 2)}, "do not make"),
    "half a LoKr": ({f"{GOOD}.lokr_w1": random(2, 2)}, "one of two factors is missing"),
    "lengths": (
        good() | {f"base_model.model.{GOOD}.lora_magnitude_vector": random(5)},
        "row_lengths",
    ),
    "twice": (good() | good(f"transformer.{GOOD}"), "are there twice under different names"),
    "only alpha": ({f"{GOOD}.alpha": random(1)}, "do not make"),
    "a model": ({"blocks.0.attn.qkv.weight": random(216, WIDTH)}, "have no place"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_refused(tmp_path: Path, kind: str) -> None:
    tensors, message = BAD[kind]
    with pytest.raises(MismatchError, match=message):
        read(tmp_path, tensors)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    tensors = {f"nothing.{i}.alpha": random(1) for i in range(12)}
    with pytest.raises(MismatchError, match=r"12 of .*\n.*\n.*\n.*\n.*\n.*\n  and 7 more"):
        read(tmp_path, tensors)


def scale_of(adapter: Adapter) -> float:
    (patch,) = adapter.patches
    return patch.update.scale


def test_the_config_of_a_folder_scales(tmp_path: Path) -> None:
    file = written(tmp_path, good())
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 12}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert scale_of(read_adapter(tmp_path, small_transformer())) == 4
    assert scale_of(read_adapter(file, small_transformer())) == 1  # may be anyone's config
    file.rename(tmp_path / "adapter_model.safetensors")
    named = read_adapter(tmp_path / "adapter_model.safetensors", small_transformer())
    assert scale_of(named) == 4 and named.report.alpha == "config"


def test_alpha_in_the_file_goes_before_the_config(tmp_path: Path) -> None:
    written(tmp_path, good() | {f"base_model.model.{GOOD}.alpha": torch.tensor(6.0)})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": R, "lora_alpha": 12}))
    assert scale_of(read_adapter(tmp_path, small_transformer())) == 2


def test_patterns_and_roots() -> None:
    config = {"r": 4, "alpha": 8, "alpha_pattern": {r"to_[qk]": 2}, "rank_pattern": {"attn.fc": 16}}
    scaling = scaling_of(config, "here")
    assert scaling.of("blocks.0.to_q", 4) == 0.5
    assert scaling.of("blocks.0.not_to_q", 4) == 2
    assert scaling.of("blocks.0.attn.fc", None) == 0.5
    assert scaling_of(config | {"use_rslora": True}, "here").of("x", 4) == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "of kind IA3"),
        ({"r": "many"}, "config of a LoRA"),
        ({"r": 4, "init_lora_weights": "pissa_niter_4"}, "changing them .*pissa_niter_4"),
        ({"r": 4, "init_lora_weights": "OLoRA"}, "published weights"),
    ],
)
def test_configs_that_tell_something_else(config: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        scaling_of(config, "here")


def test_metadata_that_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(CorruptWeightsError, match="must be JSON"):
        read(tmp_path, good(), lora_adapter_metadata="{")


def test_where_the_file_is(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="is a file or a folder"):
        adapter_file(tmp_path / "none")
    with pytest.raises(MissingWeightsError, match="has 0"):
        adapter_file(tmp_path)
    first = written(tmp_path, good())
    assert adapter_file(tmp_path) == adapter_file(str(first)) == first
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(MissingWeightsError, match="has 2; name the file"):
        adapter_file(tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    assert adapter_file(tmp_path).name == "pytorch_lora_weights.safetensors"


def test_a_pickle_of_peft(tmp_path: Path) -> None:
    torch.save(good(), tmp_path / "adapter_model.bin")
    assert read_adapter(tmp_path, small_transformer()).report.num_modules == 1


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="no tensors of an adapter"):
        read(tmp_path, {})
