"""The tokenizer against transformers' T5Tokenizer, id for id."""

import random
from pathlib import Path

import pytest

import pixsigma
from pixsigma.models.text import Tokenizer

FOLDER = Path(pixsigma.__file__).parent / "mini" / "tokenizer"

HARD = [
    "",
    " ",
    " \n\t ",
    "  leading and trailing  ",
    "two  spaces",
    "a</s>b",
    "a </s> b",
    "</s>",
    "</s></s>",
    "<pad>",
    "<unk> a",
    "x<unk>y",
    "<s> x",
    "<extra_id_0>",
    "a<extra_id_0>b",
    "a <extra_id_12> b  <extra_id_99>c",
    "<extra_id_100>",
    "<extra_id_07>",
    "<EXTRA_ID_7>",
    "<extra_id_1><extra_id_2> <extra_id_3>",
    "😀 hi 👩‍👩‍👧 ❤️",
    "日本の絵 中文 한국어 العربية עברית ไทย",
    "ﬁne Å Å ① ½ ﷺ",
    "cafe\u0301 naïve œuvre Straße",
    "zero\u200bwidth\u00a0space\u3000wide",
    "▁a ▁ b",
    "\x00\x01control\x7f",
    "\ufeffbom",
    "\ud7ff\ue000 private",
    "line\nbreak\r\nand\ttab",
    "4096x4096, f/1.8, ISO-100!!! (masterpiece:1.3)",
    "a" * 500,
    "red " * 400,
    "  <extra_id_3>  q",
]


def strings(number: int) -> list[str]:
    rng = random.Random(0)
    words = ["a", "the", "red", "Apple", "cat's", "photo", "of", "3D", "8k,", "portrait;"]
    words += ["<unk>", "</s>", "<pad>", "<extra_id_5>"]
    planes = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x4FF), (0x2000, 0x27BF), (0x3040, 0x9FFF)]
    planes += [(0x1F300, 0x1FAFF), (0xFB00, 0xFFEF)]

    def piece() -> str:
        if rng.random() < 0.5:
            return rng.choice(words)
        first, last = rng.choice(planes)
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6)))

    def text() -> str:
        gaps = ["", " ", " ", " ", "  ", "\n", "\t"]
        return "".join(piece() + rng.choice(gaps) for _ in range(rng.randint(1, 25)))

    return HARD + [text() for _ in range(number - len(HARD))]


@pytest.fixture(scope="module")
def theirs():
    from transformers import T5Tokenizer

    return T5Tokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_equal_on_a_thousand_strings(theirs, file, tmp_path):
    theirs.save_pretrained(tmp_path)  # transformers 5 writes tokenizer.json alone
    folder = tmp_path if file == "tokenizer.json" else FOLDER
    ours = Tokenizer(folder / file, max_length=10_000)
    texts = strings(1000)
    wanted = theirs(texts).input_ids
    assert len(texts) == 1000
    for text, ids in zip(texts, wanted, strict=True):
        assert ours.ids(text) == ids, repr(text)


@pytest.mark.filterwarnings("ignore:a prompt may have")
@pytest.mark.parametrize("max_length", [1, 2, 20, 300])
def test_equal_when_cut_and_padded(theirs, max_length):
    ours = Tokenizer(FOLDER / "spiece.model", max_length=max_length)
    texts = strings(60)
    wanted = theirs(
        texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
    )
    ids, mask = ours(texts, pad_to_max_length=True)
    assert ids.tolist() == wanted.input_ids.tolist()
    assert mask.int().tolist() == wanted.attention_mask.tolist()


def test_a_mark_on_a_hard_space_is_unknown_as_in_sentencepiece(theirs):
    # The one difference found: theirs normalises by grapheme and loses the mark. T5 and PixArt
    # were trained with sentencepiece itself.
    text = "\u00a0\ufe0b"
    assert Tokenizer(FOLDER / "spiece.model").ids(text) == [3, 2, 1]
    assert theirs(text).input_ids == [1]
