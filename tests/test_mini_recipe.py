"""mini's composed training data: what captions say is what pictures show."""

import json
import pickle
import random
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pixsigma.evaluation.compositions import RELATIONS, TASKS, Composition, Wanted
from pixsigma.evaluation.segments import has_colour, segments

RECIPE = Path(__file__).parents[1] / "recipes" / "mini"


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's modules lie beside each other, as its scripts are run."""
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])


@pytest.fixture
def layouts(beside: None) -> ModuleType:
    """The script that draws compositions."""
    import layouts

    return layouts


def test_questions_are_of_all_tasks_and_differ(layouts: ModuleType) -> None:
    asked = layouts.questions()
    assert {plan.task for plan in asked} == set(TASKS)
    assert len({plan.key for plan in asked}) == len(asked)
    assert set(layouts.RELATIONS) == set(RELATIONS)
    for relation in RELATIONS:
        assert sum(plan.relation == relation for plan in asked) == 8
    for plan in asked:
        row = plan.question()
        things = tuple(Wanted(**thing) for thing in row["things"])
        Composition(task=row["task"], prompt=row["prompt"], things=things, relation=row["relation"])
    assert [plan.prompt() for plan in layouts.questions()] == [plan.prompt() for plan in asked]


def test_training_never_has_what_is_asked(layouts: ModuleType) -> None:
    kept_away = {plan.key for plan in layouts.questions()}
    plans = list(layouts.training_plans(3000, random.Random(0), kept_away))
    assert not kept_away & {plan.key for plan in plans}
    assert {plan.task for plan in plans} == set(TASKS)


def test_pictures_show_what_their_plan_says(layouts: ModuleType) -> None:
    rng = random.Random(0)
    plans = layouts.training_plans(10**6, rng, set())
    solids = (plan for plan in plans if all(p.name in layouts.SOLIDS for p in plan.parts))
    for plan in islice(solids, 40):
        picture, ground, shown = layouts.compose(plan, rng.choice(("3D", "flat")), {}, rng)
        found = segments(picture)
        if shown != "on top of":  # these touch
            wanted = [p.colour for p in plan.parts for _ in range(p.count)]
            assert len(found) == len(wanted), plan
            for part in plan.parts:
                assert sum(has_colour(each, part.colour) for each in found) == part.count
        if shown in layouts.OFFSETS:
            first = next(each for each in found if has_colour(each, plan.parts[0].colour))
            second = next(each for each in found if each is not first)
            assert RELATIONS[shown](first, second), plan
        for caption in layouts.captions(plan, "flat", ground, shown, rng):
            assert all(part.colour in caption for part in plan.parts)
            assert "flat" in caption, "3D is what is meant without a word"
            assert ground in caption or ground == "white"


def test_words_are_as_english_has_them(layouts: ModuleType) -> None:
    part = layouts.Part
    assert part("cube", "orange", 1).phrase() == "an orange cube"
    assert part("torus", "blue", 3).phrase() == "three blue tori"
    assert part("fish", None, 2).phrase() == "two fish"
    assert part("cat", None, 1, "small").phrase() == "a small cat"
    several = {"strawberry": "strawberries", "bus": "buses", "key": "keys", "snowman": "snowmen"}
    assert {n: part(n, None, 2).phrase() for n in several} == {
        noun: f"two {many}" for noun, many in several.items()
    }


def test_a_synonym_that_a_caption_has_is_refused(layouts: ModuleType, tmp_path: Path) -> None:
    import questions
    from sources import Thing

    thing = Thing(
        name="cat", emoji="", kind="animal", phrase="a cat", extras=(), keywords=(), mirrors=True
    )
    listing = tmp_path / "synonyms.txt"
    listing.write_text("# a comment\nkitty | cat\n")
    (row,) = questions.synonyms_asked(listing, [thing], ["a cat, pet"])
    assert row == {
        "measure": "synonyms",
        "prompt": "a kitty on a white background",
        "thing": "cat",
    }
    with pytest.raises(SystemExit, match="in a caption"):
        questions.synonyms_asked(listing, [thing], ["a kitty"])
    with pytest.raises(SystemExit, match="in a caption"):
        questions.synonyms_asked(listing, [thing], ["two kitties"])
    with pytest.raises(SystemExit, match=r"not in things\.txt"):
        questions.synonyms_asked(listing, [], ["a cat"])
    listing.write_text("tom cat | cat\n")
    assert questions.synonyms_asked(listing, [thing], ["a tom"])
    with pytest.raises(SystemExit, match="in a caption"):
        questions.synonyms_asked(listing, [thing], ["a cat and a tom"])


def test_the_shipped_synonyms_are_a_hundred() -> None:
    lines = (RECIPE / "synonyms.txt").read_text("utf-8").splitlines()
    pairs = [line.split(" | ") for line in lines if not line.startswith("#")]
    assert len({word for word, _ in pairs}) == len(pairs) == 100
    listing = (RECIPE / "things.txt").read_text("utf-8")
    assert all(f"\n{thing} |" in listing or f"\n!{thing} |" in listing for _, thing in pairs)


@pytest.mark.parametrize("content", [None, '{"path": "a.png"}\nno json\n'])
def test_lists_that_are_none_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])
    import lines

    if content is not None:
        (tmp_path / "captions.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=r"captions\.jsonl"):
        lines.read_lines(tmp_path / "captions.jsonl")


def test_downloads_without_npm_are_told(
    beside: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sources

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no npm"):
        sources.fetch(tmp_path)


def test_a_trial_takes_rows_from_everywhere(beside: None, tmp_path: Path) -> None:
    import views

    (tmp_path / "captions.jsonl").write_text(
        "".join(
            json.dumps({"path": f"{n}.png", "kind": "a", "thing": n, "style": "", "captions": []})
            + "\n"
            for n in range(10)
        )
    )
    for n in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.png")
    views.choose(tmp_path, 6)
    told = (tmp_path / "views.jsonl").read_text().splitlines()
    chosen = [json.loads(line)["path"] for line in told]
    assert chosen == [f"{n}.png" for n in (0, 1, 3, 5, 6, 8)]


def test_an_epoch_sees_single_things_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])
    import features

    rows = [
        {"kind": "animal", "background": "white"},
        {"kind": "animal", "background": "blue"},
        {"kind": "animal", "background": "white", "composed": True},
        {"kind": "composition", "background": "white", "composed": True},
    ]
    assert features.epoch(rows, white=3, single=2) == [0, 0, 0, 1, 1, 2, 2, 3]


@pytest.fixture
def words(beside: None) -> ModuleType:
    """The script that teaches nouns."""
    import words as script

    return script


def test_nouns_are_those_of_what_can_be_seen(words: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "data.noun"
    file.write_text(
        "  1 This software and database\n"
        '02123649 05 n 03 kitty 0 kitty-cat 0 Puss 0 002 @ 02123424 n 0000 | a cat; "here, kitty"\n'
        "05841351 09 n 01 idea 0 000 | the content of cognition\n"
    )
    assert words.read_nouns(file) == [("kitty", "a cat")]


def test_a_noun_means_the_thing_that_one_of_its_senses_is_near(
    words: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    senses = [("jumper", "a sheep"), ("jumper", "a garment"), ("rock", "stone"), ("cat", "a cat")]
    line = "00000001 05 n 01 {} 0 000 | {}; and more\n"
    (tmp_path / "nouns").write_text("".join(line.format(*sense) for sense in senses))
    near = {"sheep": (1.0, 0.0), "shirt": (0.0, 1.0), "jumper": (0.3, 0.6), "rock": (0.2, 0.3)}
    near |= {
        "jumper: a sheep": (0.9, 0.0),
        "jumper: a garment": (0.0, 0.5),
        "rock: stone": (0, 0.5),
    }
    monkeypatch.setattr(words, "teach", lambda texts, _: torch.tensor([near[t] for t in texts]))
    args = SimpleNamespace(nouns=tmp_path / "nouns", teacher=None)
    found = words.meanings(args, ["sheep", "shirt"], known={"cat"})
    assert found == {"jumper": "sheep"}  # (0.3 + 0.9) / 2 beats (0.6 + 0.5) / 2; a rock has 0.4


def test_a_noun_takes_the_place_of_its_thing_and_no_other(words: ModuleType) -> None:
    captions = [
        "A cat face, flat",
        "an owl above two cats",
        "a red cat.",
        "the " + "big " * 20 + "cat",
    ]
    places = words.places_of(["cat", "cat face", "owl"], captions)
    assert places["cat face"] == [["A ", "cat face", ", flat"]]
    assert places["cat"] == [["an owl above two ", "cats", ""], ["a red ", "cat", "."]]
    segments = words.exchanged(places["owl"][0], "owl", "kitty")
    assert "".join(part.told for part in segments).replace(" ", "") == "anowlabovetwocats"
    assert [part.asked for part in segments if part.asked != part.told] == ["a", "kitty"]
    two = words.exchanged(places["cat"][0], "cat", "kitty")
    assert "".join(part.asked for part in two) == "an owl above two kitties"
    assert [p.asked for p in words.exchanged(["", "Cat", ","], "cat", "owl")][1:2] == ["Owl,"]


class Letters:
    """A piece a letter."""

    def ids(self, text: str) -> list[int]:
        return [*map(ord, text.replace(" ", "")), 1]


def test_tokens_of_a_noun_look_at_those_of_the_thing(words: ModuleType) -> None:
    lessons = words.Lessons(Letters(), {"kitty": "cat"}, {"cat": [["a ", "cat", " on it"]]})
    asked, told, own = lessons.of("kitty", random.Random(0))
    assert asked == [*map(ord, "akittyonit"), 1] and told == [*map(ord, "acatonit"), 1]
    assert own == [0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8]
    ids, mask, *_, places = lessons.batch(["kitty"], random.Random(0))
    assert ids[mask].tolist() == asked and places.tolist() == [own]
    assert lessons.mixed(2, random.Random(0)) == ["a cat on it"] * 2


@pytest.fixture
def encoder(beside: None) -> ModuleType:
    """The script that trains the text encoder."""
    import text as script

    return script


def test_what_is_kept_is_whole_or_not_there(encoder: ModuleType, tmp_path: Path) -> None:
    def killed() -> object:
        return lambda: None  # which torch.save has begun to write when it finds that it cannot

    with pytest.raises((AttributeError, pickle.PicklingError)):
        encoder.cached(tmp_path / "kept.pt", killed)
    assert encoder.cached(tmp_path / "kept.pt", lambda: 3) == 3
    assert encoder.cached(tmp_path / "kept.pt", killed) == 3


def test_a_rate_rises_and_falls(encoder: ModuleType) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    mover = torch.optim.SGD([{"params": [weight], "peak": 2.0, "lr": 0.0}])

    def rate(part: float, step: int, **settings: float) -> float:
        encoder.set_rate(mover, part, step, **settings)
        return float(mover.param_groups[0]["lr"])

    assert rate(0.0, 49) == 1.0 and rate(0.5, 1000) == 1.0 and rate(1.0, 1000) == 0.04
    assert rate(0.0, 49, warmup=50) == 2.0 and rate(1.0, 1000, least=0.0) == 0.0


@pytest.fixture
def coder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that trains the autoencoder."""
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])
    import autoencoder as script

    return script


def test_small_batches_have_pictures(coder: ModuleType) -> None:
    data = {size: torch.zeros(3, 3, size, size, dtype=torch.uint8) for size in coder.SIZES}
    for step in range(4):
        assert len(coder.training_batch(data, step, coder.Options(batch=2)))


def test_many_pictures_held_out_leave_the_others_for_training(
    coder: ModuleType, tmp_path: Path
) -> None:
    for name, num in (("captions", 5), ("held_out", coder.NUM_HELD_OUT + 2)):
        text = "".join(f'{{"path": "{name}-{n}.png"}}\n' for n in range(num))
        (tmp_path / f"{name}.jsonl").write_text(text)
    train, held = coder.read_paths(tmp_path, seed=0)
    assert len(train) == 5 and len(held) == coder.NUM_HELD_OUT + 2


def test_a_run_goes_on_as_it_was_begun(
    coder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder.Run(coder.Options(batch=2), tmp_path).save()
    coder.Run(coder.Options(batch=2, minutes=99.0), tmp_path).resume()
    with pytest.raises(SystemExit, match="batch 2"):
        coder.Run(coder.Options(batch=4), tmp_path).resume()
    monkeypatch.setattr(sys, "argv", ["autoencoder.py", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit):
        coder.main()
    assert coder.Options(**torch.load(tmp_path / "checkpoint.pt")["options"]).batch == 2


def test_a_decoder_learns_from_crops_of_the_side_that_is_drawn(coder: ModuleType) -> None:
    data = {
        size: torch.full((9, 3, size, size), size - 1, dtype=torch.uint8) for size in coder.SIZES
    }
    for side, other in ((128, (8, 128)), (256, (2, 256))):
        options = coder.Options(batch=8, decoder=True, side=side)
        seen = [coder.training_batch(data, step, options) for step in range(4)]
        assert [(len(b), b.shape[-1]) for b in seen] == [(8, 128)] * 3 + [other]
        wanted = [coder.as_images(torch.tensor(s - 1)) for s in (side, side, side, 256)]
        assert torch.equal(torch.stack([batch.max() for batch in seen]), torch.stack(wanted))


def test_a_decoder_learns_from_latents_with_noise(
    coder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, given = torch.zeros(64, 3, 32, 32), []
    for noise in (0.0, 0.2):
        options = coder.Options(decoder=True, noise=noise)
        model = coder.Run(options, tmp_path).model
        decode = model.decode
        monkeypatch.setattr(model, "decode", lambda z: given.append(z) or decode(z))  # noqa: B023
        torch.manual_seed(0)
        coder.training_loss(model, images, options)
    deviations = (given[1] - given[0]).flatten(1).std(dim=1)
    assert 0 < deviations.min() < 0.05 and 0.15 < deviations.max() < 0.25


def test_a_decoder_is_trained_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])
    import autoencoder as script

    options = script.Options(minutes=1.0, batch=2, decoder=True)
    data = {size: torch.randint(0, 256, (3, 3, size, size)).byte() for size in script.SIZES}
    shapes = {tuple(script.training_batch(data, step, options).shape) for step in range(4)}
    assert shapes == {(2, 3, script.WHOLE, script.WHOLE)}
    run = script.Run(options, tmp_path)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    run._one_step(data)
    moved = {n for n, w in run.model.state_dict().items() if not torch.equal(w, before[n])}
    assert moved and all(n.startswith(("decoder.", "post_quant_conv.")) for n in moved)
    quant = run.average.quant_conv.weight.clone()
    script.finish(run, data, data)
    assert torch.equal(script.read_autoencoder(tmp_path / "vae").quant_conv.weight, quant)


def test_one_more_level_keeps_the_latents(
    coder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import larger

    monkeypatch.setattr(coder, "NUM_HELD_OUT", 2)
    monkeypatch.setattr(larger, "BATCH", 4)
    before = coder.Run(coder.Options(), tmp_path).model.requires_grad_(False)
    before.decoder.conv_out.weight *= torch.tensor([0.0, 1.0, 0.0]).outer(torch.tensor([0.0, 1, 0]))
    coder.write_folder(before, before.config, tmp_path / "before")
    (tmp_path / "images").mkdir()
    rows = []
    for n in range(6):
        noise = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((256, 256)).save(tmp_path / "images" / f"{n}.png")
        rows.append(f'{{"path": "images/{n}.png"}}\n')
    (tmp_path / "captions.jsonl").write_text("".join(rows[:4]))
    (tmp_path / "held_out.jsonl").write_text("".join(rows[4:]))
    paths = [str(tmp_path / name) for name in ("before", ".", "after")]
    monkeypatch.setattr(sys, "argv", ["larger.py", *paths, "--steps", "150"])
    larger.main()
    after = coder.read_autoencoder(tmp_path / "after", dtype=torch.float32)
    assert after.config.factor == 2 * before.config.factor
    held = coder.read_pictures([tmp_path / "images" / f"{n}.png" for n in (4, 5)])
    assert larger.kept(after, before, held) < 0.3
    z = torch.randn(1, 4, 4, 4)
    doubled = before.decode(z).repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(after.decode(z), doubled)
