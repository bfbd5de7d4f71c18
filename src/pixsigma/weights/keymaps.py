"""Tables of names: whose, ours, theirs. The mechanics are in `renaming.py`.

Our transformer has the names of the authors' `.pth` files. Diffusers cannot run KV compression nor
query-key norms, so its layout has no names for them: `attn1.sr`, `attn1.norm`, `attn1.q_norm` and
`attn1.k_norm` are ours, and so are the config keys `kv_compression` and `qk_norm`.
"""

from collections.abc import Iterable

from pixsigma.errors import MismatchError
from pixsigma.weights.renaming import KeyMap

_WRAPPERS = (r"^(?:model\.diffusion_model\.|module\.|_orig_mod\.)+", "")
"""Prefixes that ComfyUI, DistributedDataParallel and torch.compile put before the names."""

OFFICIAL = KeyMap(
    name="official",
    aliases=(_WRAPPERS,),
    # Positions are computed, and the caption that stands for no caption is T5's answer to "".
    dropped=(r"(?:base_model\.|model\.)?pos_embed", r"y_embedder\.y_embedding"),
)

DIFFUSERS = KeyMap(
    name="diffusers",
    aliases=(_WRAPPERS,),
    dropped=(r"pos_embed\.pos_embed",),
    rules=(
        ("x_embedder.proj", ("pos_embed.proj",)),
        ("t_embedder.mlp.0", ("adaln_single.emb.timestep_embedder.linear_1",)),
        ("t_embedder.mlp.2", ("adaln_single.emb.timestep_embedder.linear_2",)),
        ("csize_embedder.mlp.0", ("adaln_single.emb.resolution_embedder.linear_1",)),
        ("csize_embedder.mlp.2", ("adaln_single.emb.resolution_embedder.linear_2",)),
        ("ar_embedder.mlp.0", ("adaln_single.emb.aspect_ratio_embedder.linear_1",)),
        ("ar_embedder.mlp.2", ("adaln_single.emb.aspect_ratio_embedder.linear_2",)),
        ("t_block.1", ("adaln_single.linear",)),
        ("y_embedder.y_proj.fc1", ("caption_projection.linear_1",)),
        ("y_embedder.y_proj.fc2", ("caption_projection.linear_2",)),
        ("blocks.{i}.scale_shift_table", ("transformer_blocks.{i}.scale_shift_table",)),
        (
            "blocks.{i}.attn.qkv",
            (
                "transformer_blocks.{i}.attn1.to_q",
                "transformer_blocks.{i}.attn1.to_k",
                "transformer_blocks.{i}.attn1.to_v",
            ),
        ),
        ("blocks.{i}.attn.proj", ("transformer_blocks.{i}.attn1.to_out.0",)),
        ("blocks.{i}.attn.q_norm", ("transformer_blocks.{i}.attn1.q_norm",)),
        ("blocks.{i}.attn.k_norm", ("transformer_blocks.{i}.attn1.k_norm",)),
        ("blocks.{i}.attn.sr", ("transformer_blocks.{i}.attn1.sr",)),
        ("blocks.{i}.attn.norm", ("transformer_blocks.{i}.attn1.norm",)),
        ("blocks.{i}.cross_attn.q_linear", ("transformer_blocks.{i}.attn2.to_q",)),
        (
            "blocks.{i}.cross_attn.kv_linear",
            ("transformer_blocks.{i}.attn2.to_k", "transformer_blocks.{i}.attn2.to_v"),
        ),
        ("blocks.{i}.cross_attn.proj", ("transformer_blocks.{i}.attn2.to_out.0",)),
        ("blocks.{i}.mlp.fc1", ("transformer_blocks.{i}.ff.net.0.proj",)),
        ("blocks.{i}.mlp.fc2", ("transformer_blocks.{i}.ff.net.2",)),
        ("final_layer.linear", ("proj_out",)),
        ("final_layer.scale_shift_table", ("scale_shift_table",)),
    ),
)

T5 = KeyMap(
    name="transformers",
    # The table of words is stored under either name or both: one tensor.
    aliases=((r"^encoder\.embed_tokens\.weight$", "shared.weight"),),
    twins=("shared.weight",),
    dropped=(r"decoder\..*", r"lm_head\..*"),
    rules=(
        ("embed", ("shared",)),
        (
            "position_bias",
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias",),
        ),
        ("blocks.{i}.attn_norm", ("encoder.block.{i}.layer.0.layer_norm",)),
        ("blocks.{i}.attn.q", ("encoder.block.{i}.layer.0.SelfAttention.q",)),
        ("blocks.{i}.attn.k", ("encoder.block.{i}.layer.0.SelfAttention.k",)),
        ("blocks.{i}.attn.v", ("encoder.block.{i}.layer.0.SelfAttention.v",)),
        ("blocks.{i}.attn.o", ("encoder.block.{i}.layer.0.SelfAttention.o",)),
        ("blocks.{i}.mlp_norm", ("encoder.block.{i}.layer.1.layer_norm",)),
        ("blocks.{i}.mlp.wi_0", ("encoder.block.{i}.layer.1.DenseReluDense.wi_0",)),
        ("blocks.{i}.mlp.wi_1", ("encoder.block.{i}.layer.1.DenseReluDense.wi_1",)),
        ("blocks.{i}.mlp.wo", ("encoder.block.{i}.layer.1.DenseReluDense.wo",)),
        ("final_norm", ("encoder.final_layer_norm",)),
    ),
)

AUTOENCODER = KeyMap(
    name="diffusers",
    aliases=(
        (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
        (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
        (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
        (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    ),
    flattened=r".*attentions\.\d+\.to_(?:q|k|v|out\.0)\.weight",
)


def transformer_names(keys: Iterable[str]) -> KeyMap:
    """Whose names a transformer file has.

    Raises MismatchError where the names are of neither kind.
    """
    keys = list(keys)
    for keymap, sign in ((DIFFUSERS, "transformer_blocks.0."), (OFFICIAL, "blocks.0.")):
        if any(name.startswith(sign) for name in keymap.canonical(keys)):
            return keymap
    raise MismatchError(
        "a PixArt transformer has tensors named blocks.0.* (official) or transformer_blocks.0.* "
        f"(diffusers); this file has {len(keys)} tensors, the first are {keys[:3]}"
    )
