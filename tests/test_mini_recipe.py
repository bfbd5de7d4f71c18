"""mini's composed training data: what captions say is what pictures show."""

import random
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from pixsigma.evaluation.compositions import RELATIONS, TASKS, Composition, Wanted
from pixsigma.evaluation.segments import has_colour, segments

RECIPE = Path(__file__).parents[1] / "recipes" / "mini"


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe's modules lie beside each other, as its scripts are run."""
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])
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
    with pytest.raises(SystemExit, match=r"not in things\.txt"):
        questions.synonyms_asked(listing, [], ["a cat"])


def test_the_shipped_synonyms_are_a_hundred() -> None:
    lines = (RECIPE / "synonyms.txt").read_text("utf-8").splitlines()
    pairs = [line.split(" | ") for line in lines if not line.startswith("#")]
    assert len({word for word, _ in pairs}) == len(pairs) == 100
    listing = (RECIPE / "things.txt").read_text("utf-8")
    assert all(f"\n{thing} |" in listing or f"\n!{thing} |" in listing for _, thing in pairs)


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
