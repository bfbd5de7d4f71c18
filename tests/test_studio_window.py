"""What a window of the studio shows: names of pictures, drawings found again, empty boxes."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tests.serving import OF_GRADIO, small_service, until_over

from pixsigma.errors import InputError
from pixsigma.server.service import Service, Status
from pixsigma.server.studio import wishes, words
from pixsigma.server.studio.drawing import Scene, Studio, named

pytestmark = OF_GRADIO

FIELDS = {"prompt": "A red fox!", "width": 32, "height": 32, "num_inference_steps": 3, "seed": 5}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = small_service(tmp_path)
    service.start()
    yield service
    service.stop()


def resumed(studio: Studio, id: str, who: str) -> list[Scene]:
    async def run() -> list[Scene]:
        return [scene async for scene in studio.resume(id, who)]

    return asyncio.run(run())


def test_a_window_finds_its_drawing_again(service: Service) -> None:
    studio = Studio(service)
    job = studio.submit(FIELDS, "small", "ann")
    *_, last = resumed(studio, job.id, "ann")  # it may still be drawn
    assert last.mood == "idle" and last.job == job.id and last.pictures
    assert resumed(studio, job.id, "ann")[-1].pictures == last.pictures  # it is done
    for id, who in ((job.id, "bob"), ("", "ann"), ("../x", "ann")):
        assert resumed(studio, id, who) == []
    service.forget(service.store.get(job.id))
    assert resumed(studio, job.id, "ann") == []


def test_a_window_without_a_drawing_stays_as_it_is(service: Service) -> None:
    gr = pytest.importorskip("gradio", reason="needs gradio: pip install 'pixsigma[serve]'")
    from pixsigma.server.studio.page import make_page

    (resume,) = (each.fn for each in make_page(service).fns.values() if each.name == "resume")

    async def run() -> list[list[Any]]:
        return [out async for out in resume(SimpleNamespace(username=None), "")]

    (untouched,) = asyncio.run(run())
    assert untouched and all(out == gr.skip() for out in untouched)


def test_what_was_stopped_is_not_shown_again(service: Service) -> None:
    studio = Studio(service)
    job = studio.submit(FIELDS | {"num_inference_steps": 100}, "small", "ann")
    studio.stop(job.id)
    assert until_over(service, job.id).state == "cancelled"
    assert resumed(studio, job.id, "ann") == []


def test_a_picture_is_saved_under_its_prompt(service: Service) -> None:
    studio = Studio(service)
    job = until_over(service, studio.submit(FIELDS, "small", "ann").id)
    ((path, caption),) = studio.pictures(job)
    assert path.name == "a-red-fox-5.png" and caption == "A red fox! · seed 5"
    assert Path(str(path)).name == "0.png" and Image.open(path).size == (32, 32)


def test_gradio_hands_the_name_to_the_browser(tmp_path: Path) -> None:
    gr = pytest.importorskip("gradio", reason="needs gradio: pip install 'pixsigma[serve]'")
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    told = gr.Gallery().postprocess([(named(tmp_path / "0.png", "fox-5"), "a fox")])
    assert told.root[0].image.orig_name == "fox-5.png"
    assert told.root[0].image.path == str(tmp_path / "0.png")


@pytest.mark.parametrize("given", [None, "", 1000, -3, 2.5])
def test_boxes_of_sliders_may_hold_anything_while_they_are_written(given: Any) -> None:
    pytest.importorskip("gradio", reason="needs gradio: pip install 'pixsigma[serve]'")
    from pixsigma.server.studio.widgets import slider

    assert slider(1, 100, 20, step=1).preprocess(given) == given


def test_boxes_that_are_empty_are_told() -> None:
    assert wishes.number("2.5", "guidance") == 2.5
    for name, read in (("steps", wishes.whole), ("guidance", wishes.number)):
        for empty in (None, ""):
            with pytest.raises(InputError, match=f"{name} must be a .*number, got nothing"):
                read(empty, name)


def test_a_long_warning_leaves_room_for_the_picture() -> None:
    warned = "the model does not see 'fox " + 400 * "<b>fox</b> " + "'"
    job = SimpleNamespace(state="done", warnings=[warned, "short"], seeds=[1], seconds=1)
    told = words.sentence(Status(job))  # type: ignore[arg-type]
    assert "does not see" in told and "…<br>⚠ short" in told and "<b>" not in told
    assert len(told) < 900
