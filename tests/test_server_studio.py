"""The studio: its words, what its buttons do, and that its page comes from here alone."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tests.serving import serving, small_service, until_over

from pixsigma.errors import InputError
from pixsigma.server import studio_words as words
from pixsigma.server.service import Service, Status

# Gradio leaves event loops open and warns of its own future
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in (
        "DeprecationWarning",
        "UserWarning",
        "ResourceWarning",
        "pytest.PytestUnraisableExceptionWarning",
    )
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What Gradio left is found here, where it may be, and not in another test."""
    yield
    gc.collect()


WISH: dict[str, Any] = {
    "prompt": "a cat",
    "negative": "",
    "style": "none",
    "shape": "■ 1:1",
    "width": 32,
    "height": 32,
    "steps": 3,
    "guidance": 4.5,
    "sampler": "dpm++2m",
    "seed": 7,
    "count": 1,
    "model": "small",
    "loras": [],
    "lora_weight": 1.0,
    "canvas": None,
    "strength": 0.6,
}
VISITOR = SimpleNamespace(username=None)


def drawn(service: Service, wish: dict[str, Any]) -> list[tuple[Any, ...]]:
    from pixsigma.server.studio import Studio

    async def run() -> list[tuple[Any, ...]]:
        values = [wish[name] for name in words.WISHES]
        return [out async for out in Studio(service).draw(*values, VISITOR)]

    return asyncio.run(run())


def test_a_wish_is_drawn_told_and_remembered(tmp_path: Path) -> None:
    from pixsigma.server.studio import Studio

    service = small_service(tmp_path)
    service.start()
    *_, (text, _, gallery, id, settings) = drawn(service, WISH)
    assert text.startswith("Done in") and "seed 7" in text
    assert Image.open(gallery[0][0]).size == (32, 32) and "prompt: a cat" in settings
    studio = Studio(service)
    shown, ids = studio.history(VISITOR)  # type: ignore[arg-type]
    assert ids == [id] and shown[0][1] == "a cat"
    assert studio.again(id, VISITOR)[8] == 7  # type: ignore[arg-type]
    assert studio.as_input(id, VISITOR)["background"].size == (32, 32)  # type: ignore[arg-type]
    assert studio.history(SimpleNamespace(username="bob")) == ([], [])  # type: ignore[arg-type]
    assert "about" in studio.plan(*WISH.values()) or service.worker.speed
    service.stop()


def test_what_is_wrong_is_said_in_words(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    ((text, *_),) = drawn(service, WISH | {"width": 33})
    assert text.startswith("**That does not work:**") and "multiples" in text
    service.store.close()


def test_stop_really_stops(tmp_path: Path) -> None:
    from pixsigma.server.studio import EVERYBODY, Studio

    service = small_service(tmp_path)
    service.start()
    studio = Studio(service)
    job = studio.submit(WISH | {"steps": 100, "width": 96, "height": 96}, EVERYBODY)
    assert studio.stop(job.id) == "Stopping…"
    assert until_over(service, job.id).state == "cancelled"
    assert studio.stop(job.id) == "It is over already."
    service.stop()


def test_a_grid_draws_every_pair(tmp_path: Path) -> None:
    from pixsigma.server.studio import Studio

    service = small_service(tmp_path)
    service.start()

    async def run() -> list[tuple[Any, ...]]:
        values = [WISH[name] for name in words.WISHES]
        over = ("steps", "1 | 2", "seed", "1 | 2 | 3")
        return [out async for out in Studio(service).grid(*values, *over, VISITOR)]

    *_, (text, sheet, ids) = asyncio.run(run())
    assert "6 of 6" in text and len(ids) == 6 and sheet.width > 64
    service.stop()


def test_the_page_is_served_beside_the_api(tmp_path: Path) -> None:
    with serving(tmp_path, studio=True) as client:
        page = client.get("/")
        assert page.status_code == 200 and "pixsigma" in page.text
        assert client.get("/healthz").json() == {"status": "ok"}
        assert "/v1/jobs" in client.get("/openapi.json").json()["paths"]


def test_what_is_painted_is_the_mask() -> None:
    stroke = Image.new("RGBA", (8, 8))
    stroke.paste((255, 0, 0, 255), (0, 0, 4, 8))
    mask = words.painted([None, stroke], (8, 8))
    assert mask is not None and mask.getbbox() == (0, 0, 4, 8)
    assert words.painted([Image.new("RGBA", (8, 8))], (8, 8)) is None
    fields = words.picture_fields({"background": stroke, "layers": [stroke]}, 0.5)
    assert set(fields) == {"image", "mask", "strength"}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("steps", "a | b", "numbers"), ("steps", " | ", "write the values"), ("x", "1", "goes over")],
)
def test_bad_axes_are_told(name: str, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        words.axis(name, text)


def test_grids_are_bounded() -> None:
    with pytest.raises(InputError, match="at most 36"):
        words.cells({}, ("seed", range(10)), ("steps", range(10)))
    with pytest.raises(InputError, match="two different"):
        words.cells({}, ("seed", [1]), ("seed", [2]))


def test_plans_say_what_is_heavy() -> None:
    fields = {"width": 1024, "height": 1024, "num_images": 1, "num_inference_steps": 20}
    assert "first drawing" in words.plan(fields, None)
    assert "heavy" in words.plan(fields, 1e5) and "heavy" not in words.plan(fields, 1e8)
    assert [words.duration(s) for s in (0.2, 60, 600, 7200)] == ["1 s", "60 s", "10 min", "2.0 h"]


def test_states_are_sentences() -> None:
    def status(state: str, **fields: Any) -> Status:
        job = SimpleNamespace(state=state, reason="no room", warnings=[], seeds=[], seconds=1)
        return Status(job, **fields)  # type: ignore[arg-type]

    assert words.sentence(status("queued", place=3)) == "Waiting; 3 before it."
    assert "no room" in words.sentence(status("failed"))
    assert words.sentence(status("cancelled")) == "Stopped."
