"""The studio without a browser: its words, what its buttons do, what a hostile client gets."""

import asyncio
import gc
import io
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tests.serving import OF_GRADIO, serving, small_service, until_over

from pixsigma.errors import InputError
from pixsigma.images import write_picture
from pixsigma.machine import Machine
from pixsigma.server.limits import Limits
from pixsigma.server.service import Service, Status
from pixsigma.server.studio import estimate, grids, wishes, words
from pixsigma.server.studio.comparing import GridScene, draw_grid
from pixsigma.server.studio.drawing import Scene, Studio
from pixsigma.server.studio.estimate import Estimate, Estimator, Work, work_of
from pixsigma.server.studio.history import History

pytestmark = OF_GRADIO


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What Gradio left is found here, where it may be, and not in another test."""
    yield
    gc.collect()


WISH: dict[str, Any] = {
    "prompt": "a cat",
    "negative": "",
    "style": "none",
    "shape": "1:1",
    "scale": "normal",
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
    "fit": True,
    "strength": 0.6,
}
ANN = "ann"


def all_of(stream: AsyncIterator[Any]) -> list[Any]:
    async def run() -> list[Any]:
        return [each async for each in stream]

    return asyncio.run(run())


def drawn(studio: Studio, **changes: Any) -> Scene:
    """The last scene of a wish."""
    scenes: list[Scene] = all_of(studio.draw(WISH | changes, ANN))
    return scenes[-1]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = small_service(tmp_path)
    service.start()
    yield service
    service.stop()


@pytest.fixture
def studio(service: Service) -> Studio:
    return Studio(service)


# Drawing


def test_a_wish_is_drawn_and_told_as_it_comes(studio: Studio) -> None:
    scenes = all_of(studio.draw(WISH | {"steps": 20, "width": 128, "height": 128}, ANN))
    assert [s.mood for s in scenes[:-1]] == ["busy"] * (len(scenes) - 1)
    assert any("step" in s.words and "<progress" in s.words for s in scenes)
    assert any(s.preview and s.preview.startswith("<img") for s in scenes)
    last = scenes[-1]
    assert last.mood == "idle" and "seed 7" in last.words and last.preview == ""
    assert Image.open(last.pictures[0][0]).size == (128, 128)


def test_what_is_wrong_is_said_in_words(studio: Studio) -> None:
    assert "multiples" in str(drawn(studio, width=33).words)
    assert "both width and height" in str(drawn(studio, height=None).words)
    assert "the prompt is empty" in str(drawn(studio, prompt="  ").words)
    assert "seed must be" in str(drawn(studio, seed=-3).words)
    assert "whole number" in str(drawn(studio, steps=2.5).words)
    assert "at most 100" in str(drawn(studio, steps=101).words)
    assert studio.service.store.count("queued", "running", "done") == 0


def test_strangers_words_are_escaped(studio: Studio) -> None:
    scene = drawn(studio, sampler="<script>alert(1)</script>")
    assert "&lt;script&gt;" in str(scene.words) and "<script>" not in str(scene.words)
    html = grids.table(["x'y"], ("prompt", ["<b>"]), ("style", ["'\""]))
    assert "<b>" not in html and "x'y" not in html


def test_stop_really_stops(service: Service, studio: Studio) -> None:
    fields = studio.fields(WISH | {"steps": 100, "width": 128, "height": 128})
    job = studio.submit(fields, "small", ANN)
    assert studio.is_busy(job.id) and studio.stop(job.id)
    assert until_over(service, job.id).state == "cancelled"
    assert not studio.stop(job.id) and not studio.stop("") and not studio.is_busy(job.id)
    assert not (service.results / job.id).exists()


def test_a_job_that_vanishes_is_told(service: Service, studio: Studio) -> None:
    job = studio.submit(studio.fields(WISH), "small", ANN)
    until_over(service, job.id)
    service.forget(job)
    *_, last = all_of(studio.follow(job.id))
    assert "deleted" in last.words and last.mood == "idle"


# Cost


def test_heavy_drawings_ask_first(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Estimator, "estimate", lambda *_: Estimate(10**9, 10**10, 3600.0))
    scene = drawn(studio)
    assert scene.mood == "asking" and "60 min" in str(scene.words) and scene.job is None
    *_, last = all_of(studio.draw(WISH, ANN, sure=True))
    assert last.pictures
    *_, asked = all_of(draw_grid(studio, WISH, ("steps", "1 | 2"), ("seed", "1 | 2"), ANN))
    assert (
        asked.mood == "asking" and "4 pictures are heavy" in asked.words and "4.0 h" in asked.words
    )


def test_time_is_learned_from_what_was_drawn(service: Service, studio: Studio) -> None:
    work = Work(width=32, height=32, steps=3, guided=True, num=1)
    assert studio.estimator.estimate(work, "small", ANN).seconds is None
    assert "about" not in studio.plan(WISH, ANN) and "memory" in studio.plan(WISH, ANN)
    drawn(studio)
    job = service.store.latest(ANN, 1)[0]
    found = studio.estimator.estimate(work, "small", ANN)
    assert found.seconds == pytest.approx(job.seconds)
    assert "about" in studio.plan(WISH, ANN)
    twice = studio.estimator.estimate(replace(work, num=3, steps=6), "small", ANN)
    assert twice.seconds > 2 * found.seconds and twice.peak > found.peak
    assert studio.plan(WISH | {"height": None}, ANN) == ""


def test_loaded_weights_are_counted_once(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(width=32, height=32, steps=3, guided=True, num=1)
    pipe = studio.service.pipes["small"]
    weights = sum(p.numel() * p.itemsize for part in pipe.modules for p in part.parameters())

    def found(base: int, memory: int) -> Estimate:
        machine = Machine(device=torch.device("cpu"), memory=memory, base=base)
        monkeypatch.setattr(estimate, "this_machine", lambda *_: machine)
        return studio.estimator.estimate(work, "small", ANN)

    process, device = found(10**9, 4 * 10**9), found(0, 3 * 10**9)
    assert process.peak - 10**9 == device.peak - weights
    assert device.room == 3 * 10**9 + weights and process.room == 4 * 10**9


def test_work_counts_the_steps_that_are_taken() -> None:
    fields = {"num_inference_steps": 20, "guidance_scale": 1.0, "num_images": 2}
    assert work_of(fields) is None
    begun = work_of(fields | {"strength": 0.5}, (100, 50))
    assert begun == Work(width=96, height=48, steps=10, guided=False, num=2)


def test_plans_say_what_is_heavy() -> None:
    work = Work(width=1024, height=1024, steps=20, guided=True, num=2)
    light, unknown = Estimate(10**9, 10**10, 5.0), Estimate(10**9, 10**10, None)
    assert words.plan(work, light).startswith("2 pictures of 1024 × 1024, 20 steps: about 5 s")
    assert "about" not in words.plan(work, unknown)
    assert "more than the 10.0 GB" in words.plan(work, replace(light, peak=2 * 10**10))
    assert [words.is_heavy(each) for each in (light, unknown)] == [False, False]
    assert words.is_heavy(replace(light, seconds=61)) and words.is_heavy(replace(light, room=1))
    assert [words.duration(s) for s in (0.2, 60, 600, 7200)] == ["1 s", "60 s", "10 min", "2.0 h"]


# What was drawn before


def test_history_outlives_the_server(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    service.start()
    scene = drawn(Studio(service), count=2)
    service.stop()
    again = Studio(small_service(tmp_path))
    shown = History(again, ANN).latest()
    assert shown.marks == [(scene.job, 0), (scene.job, 1)]
    assert [caption for _, caption in shown.pictures] == ["a cat", "a cat"]
    assert "seed: 8" in History(again, ANN).told((scene.job, 1))  # type: ignore[arg-type]
    assert History(again, "bob").latest().pictures == []
    with pytest.raises(InputError, match="deleted"):
        History(again, "bob").told((scene.job, 0))  # type: ignore[arg-type]
    again.service.store.close()


def test_settings_come_back_as_they_were(studio: Studio) -> None:
    sheet = Image.new("RGB", (32, 32), "blue")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    changes = {"canvas": wishes.on_canvas(sheet, mask), "style": "ink", "negative": "fog"}
    scene = drawn(studio, **changes, count=2)
    back = History(studio, ANN).widgets((scene.job, 1))  # type: ignore[arg-type]
    assert back["seed"] == 8 and back["count"] == 1
    same = {"prompt", "negative", "style", "width", "height", "steps", "guidance", "sampler"}
    assert all(back[name] == (WISH | changes)[name] for name in same | {"fit", "strength"})
    (light,) = studio.service.store.latest(ANN, 1)
    assert "image" not in light.request and light.request["strength"] == 0.6
    fields, before = studio.fields(back), studio.fields(WISH | changes)
    assert fields["image"] == before["image"] and fields["mask"] == before["mask"]


def test_again_and_vary_draw_another(service: Service, studio: Studio) -> None:
    first = drawn(studio)
    history = History(studio, ANN)
    *_, again = all_of(history.again((first.job, 0)))  # type: ignore[arg-type]
    *_, like = all_of(history.begun((first.job, 0), wishes.variation))  # type: ignore[arg-type]
    jobs = [service.store.get(str(scene.job)) for scene in (first, again, like)]
    assert len({job.seeds[0] for job in jobs}) == 3
    same = ("prompt", "width", "height", "num_inference_steps", "image")
    assert all(jobs[0].request[name] == jobs[1].request[name] for name in same)
    assert jobs[2].request["image"].startswith("data:image/png")
    assert Image.open(like.pictures[0][0]).size == (32, 32)
    (refused,) = all_of(history.again(None))
    assert "choose a picture first" in refused.words


def test_pictures_become_larger(service: Service, studio: Studio) -> None:
    first = drawn(studio)
    history = History(studio, ANN)
    cases = (
        (wishes.enlarged, (64, 64), {"tiled": True}),
        (partial(wishes.wider, sides=["left"]), (48, 32), {"extend": {"left": 16}}),
        (partial(wishes.wider, sides=["top", "right"]), (48, 48), {"tiled": False}),
    )
    for changes, size, told in cases:
        *_, scene = all_of(history.begun((first.job, 0), changes))  # type: ignore[arg-type]
        request = service.store.get(str(scene.job)).request
        assert told.items() <= request.items() and request["prompt"] == WISH["prompt"]
        assert Image.open(scene.pictures[0][0]).size == size
    fields = service.store.get(str(first.job)).request | {"fast": True}
    for changes, fast in ((wishes.variation, True), (wishes.enlarged, False)):
        begun = wishes.begun_fields(fields, Image.new("RGB", (8, 8)), {}, **changes((8, 8)))
        assert begun["fast"] is fast  # which goes with no tiles
    assert wishes.wider((1024, 256), ["left", "bottom"]) == {"extend": {"left": 256, "bottom": 64}}


def test_a_file_gives_its_settings(service: Service, studio: Studio) -> None:
    from pixsigma.server.studio.taking import taken

    scene = drawn(studio, negative="fog", style="ink", seed=11)
    values, left = taken(studio, scene.pictures[0][0], "other")  # type: ignore[index]
    assert left == [] and values == {
        **values,
        **WISH,
        "negative": "fog",
        "style": "ink",
        "seed": 11,
    }


def test_what_the_form_has_no_place_for_is_told(studio: Studio, tmp_path: Path) -> None:
    from pixsigma.server.studio.taking import taken

    settings = {"prompt": "a fox", "model": "another", "loras": [{"path": "/gone", "weight": 0.5}]}
    settings |= {"two_pass": True, "strength": 0.4, "eta": 0.0, "style": {"name": "own"}}
    picture = Image.new("RGB", (8, 8))
    path = write_picture(picture, tmp_path, "a", settings | {"style": None}, suffix=".jpg")
    values, left = taken(studio, path, "small")
    assert left == ["strength", "two_pass", "model", "loras"]
    assert (values["prompt"], values["model"], values["loras"]) == ("a fox", "small", [])
    assert values["guidance"] == 4.5 and values["width"] is None
    bad = {"b": settings, "c": None, "d": {"prompt": "a", "num_inference_steps": "x"}}
    for name, told in {"b": "style", "c": "this file holds no settings", "d": "steps"}.items():
        path = write_picture(picture, tmp_path, name, bad[name])
        with pytest.raises(InputError, match=told):
            taken(studio, path, "small")
    with pytest.raises(InputError, match="PNG, JPEG, WEBP, this is none"):
        taken(studio, Path(__file__), "small")


def test_deleted_pictures_are_gone(service: Service, studio: Studio) -> None:
    scene = drawn(studio)
    mark = (str(scene.job), 0)
    with pytest.raises(InputError):
        History(studio, "bob").delete(mark)
    History(studio, ANN).delete(mark)
    assert not (service.results / mark[0]).exists() and not History(studio, ANN).latest().marks
    with pytest.raises(InputError, match="deleted"):
        History(studio, ANN).picture(mark)


def test_adapters_are_asked_for_by_name_again() -> None:
    fields = {"loras": [{"path": "/data/fox.safetensors", "weight": 0.5}], "seed": 1}
    known = {"fox": Path("/data/fox.safetensors")}
    again = wishes.again_fields(fields, known)
    assert again["loras"] == [{"path": "fox", "weight": 0.5}] and again["seed"] is None
    with pytest.raises(InputError, match="no longer has the adapter 'fox'"):
        wishes.again_fields(fields, {})
    assert "adapter: fox × 0.5" in words.told(fields) and "/data" not in words.told(fields)


# Grids


def test_a_grid_draws_every_pair(service: Service, studio: Studio) -> None:
    sides = ("steps", "1 | 2"), ("seed", "1 | 2 | 3")
    scenes: list[GridScene] = all_of(draw_grid(studio, WISH, *sides, ANN))
    last = scenes[-1]
    assert "6 of 6" in last.words and len(last.ids or ()) == 6
    assert str(last.table).count("<img") == 6 and "download='grid.jpg'" in str(last.table)
    jobs = [service.store.get(id) for id in last.ids or ()]
    drawn = [(job.request["seed"], job.request["num_inference_steps"]) for job in jobs]
    assert drawn == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]


def test_a_grid_is_accepted_as_a_whole(tmp_path: Path) -> None:
    service = small_service(tmp_path, limits=Limits(max_per_client=3))
    sides = ("steps", "1 | 2"), ("seed", "1 | 2")
    (scene,) = all_of(draw_grid(Studio(service), WISH, *sides, ANN))
    assert "a client may have 3 jobs" in scene.words
    assert service.store.count("queued", "running") == 0
    service.store.close()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("steps", "a | b", "numbers"), ("steps", " | ", "write the values"), ("x", "1", "goes over")],
)
def test_bad_axes_are_told(name: str, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        grids.axis(name, text)


def test_grids_are_bounded() -> None:
    with pytest.raises(InputError, match="at most 36"):
        grids.cells({}, ("seed", range(10)), ("steps", range(10)))
    with pytest.raises(InputError, match="two different"):
        grids.cells({}, ("seed", [1]), ("seed", [2]))


def test_the_sheet_has_its_pictures_in_their_places() -> None:
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    sheet = grids.sheet([red, blue, None, red], ["a", "b"], [1.5, "по-русски"])
    colours = [sheet.getpixel((110 + 44 * x + 20, 24 + 44 * y + 20)) for y, x in ((0, 0), (0, 1))]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    assert sheet.getpixel((110 + 20, 24 + 44 + 20)) == (255, 255, 255)


# Pictures that are sent


def test_what_is_painted_is_the_mask() -> None:
    stroke = Image.new("RGBA", (8, 8))
    stroke.paste((255, 0, 0, 255), (0, 0, 4, 8))
    mask = wishes.painted([None, stroke], (8, 8))
    assert mask is not None and mask.getbbox() == (0, 0, 4, 8)
    assert wishes.painted([Image.new("RGBA", (8, 8))], (8, 8)) is None
    fields = wishes.picture_fields({"background": stroke, "layers": [stroke]}, 0.5)
    assert set(fields) == {"image", "mask", "strength"}
    assert wishes.picture_fields({"background": Image.new("RGBA", (8, 8)), "layers": []}, 1) == {}


def test_shapes_and_sizes_are_pixels_and_back() -> None:
    large = wishes.Native(1024)
    assert wishes.sized(large, "3:2", "normal") == {"width": 1216, "height": 832}
    assert wishes.sized(wishes.Native(128), "16:9", "small") == {"width": 80, "height": 48}
    coarse = wishes.Native(256, 32)
    for shape, scale in product(wishes.SHAPES, wishes.SCALES):
        assert all(side % 32 == 0 for side in wishes.sized(coarse, shape, scale).values())
    back = wishes.size_widgets(1216, 832, large)
    assert (back["shape"], back["scale"], back["width"]) == ("3:2", "normal", None)
    odd = wishes.size_widgets(64, 496, large)
    assert (odd["width"], odd["height"], odd["shape"]) == (64, 496, "9:16")
    assert wishes.nearest_shape((4000, 3000)) in ("1:1", "3:2")


def png(size: tuple[int, int], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


def test_pictures_of_telephones_are_shrunk() -> None:
    from pixsigma.server.studio.canvas import shrunk

    small, large = Image.new("RGB", (20, 20)), Image.new("RGBA", (60, 30))
    assert shrunk(small, 400) is small and shrunk(None, 400) is None
    fitted = shrunk(large, 400)
    assert fitted is not None and fitted.size == (28, 14) and fitted.info["given"] == (60, 30)
    sliver = shrunk(Image.new("RGB", (2000, 1)), 400)
    assert sliver is not None and sliver.size == (400, 1)


def test_uploads_are_measured_before_they_are_decoded(tmp_path: Path) -> None:
    from pixsigma.server.studio.canvas import check_upload

    check_upload(io.BytesIO(png((20, 20))), 400)
    for bad, told in ((png((30, 20)), "30x20"), (png((9, 9), "GIF"), "PNG, JPEG"), (b"?", "none")):
        path = tmp_path / "upload"
        path.write_bytes(bad)
        for given in (io.BytesIO(bad), path):
            with pytest.raises(InputError, match=told):
                check_upload(given, 400)


# The application


def test_the_page_is_served_beside_the_api(tmp_path: Path) -> None:
    with serving(tmp_path, studio=True) as client:
        page = client.get("/")
        assert page.status_code == 200 and "pixsigma" in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert client.get("/healthz").json() == {"status": "ok"}
        assert "/v1/jobs" in client.get("/openapi.json").json()["paths"]


def test_the_page_names_nothing_from_elsewhere(tmp_path: Path) -> None:
    with serving(tmp_path, studio=True) as client:
        page = client.get("/").text
        css = client.get("/theme.css").text
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)=["']?([^"' >]+)""", page)
    assert loaded and not [link for link in loaded if re.match(r"(https?:)?//", link)]
    assert not re.findall(r"url\(['\"]?(?:https?:)?//", css) and "@import" not in css


def test_every_wish_has_its_widget_and_its_name(tmp_path: Path) -> None:
    fox = {"fox": Path("/data/fox.safetensors")}
    with serving(tmp_path, studio=True, loras=fox) as client:
        config = client.get("/config").json()
    labels = {part["props"].get("label") for part in config["components"]}
    wanted = {"What shall it be?", "Leave out", "Shape", "Size", "How many", "Seed", "Style"}
    wanted |= {"Sampler", "Width", "Height", "Steps", "Guidance", "Distance", "Adapters (LoRA)"}
    assert wanted <= labels
    (loras,) = [p["props"] for p in config["components"] if p["props"].get("elem_id") == "loras"]
    assert loras["visible"] and loras["choices"] == [["fox", "fox"]]
    drawing = [call for call in config["dependencies"] if len(call["inputs"]) > len(wishes.WISHES)]
    assert drawing and not any(call["show_api"] for call in drawing if "show_api" in call)


def test_scenes_become_updates_of_the_widgets() -> None:
    from pixsigma.server.studio.page import updates

    def told(scene: Scene) -> list[Any]:
        return [each.get("visible", each.get("interactive")) for each in updates(scene)[-3:]]

    asked, busy = (
        updates(Scene("?", mood="asking")),
        updates(Scene("!", "<img>", job="1", mood="busy")),
    )
    assert len(asked) == len(busy) == 10 and asked[0] == "?" and busy[3] == "1"
    assert asked[-1]["visible"] and asked[-3]["value"] == "Draw"
    assert busy[1]["value"] == "<img>" and busy[2]["visible"] is False
    assert (busy[-3]["value"], busy[-2]["interactive"]) == ("Drawing…", True)
    done = updates(Scene(".", "", [("a.png", ""), ("b.png", "")], "1"))
    assert done[4] == [("1", 0), ("1", 1)] and done[5] == ("1", 0) and done[6]["visible"]
    stopped = updates(Scene("Stopped.", "", None, "1"))
    assert stopped[2]["visible"] is False and stopped[5] is None
    assert told(Scene("?", mood="asking")) == [None, False, True]


@pytest.mark.parametrize("guarded", [True, False])
def test_an_address_in_place_of_a_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """Gradio would fetch it, as the unguarded page shows."""
    from gradio import processing_utils

    from pixsigma.server.studio import mount

    asked: list[str] = []

    async def fetch(url: str, cache_dir: str) -> str:
        asked.append(url)
        return str(tmp_path / "nothing.png")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    if not guarded:
        monkeypatch.setattr(mount, "fetch_nothing", lambda: None)
    url = "http://192.0.2.1/x.png"
    with serving(tmp_path, studio=True) as client:
        calls = client.get("/config").json()["dependencies"]
        plan = next(call for call in calls if len(call["inputs"]) == len(wishes.WISHES) - 2)
        file = {"path": url, "meta": {"_type": "gradio.FileData"}}
        body = {"fn_index": plan["id"], "session_hash": "s", "data": [file] * len(plan["inputs"])}
        client.post("/gradio_api/queue/join", json=body).raise_for_status()
        said = client.get("/gradio_api/queue/data?session_hash=s").text
    assert "process_completed" in said
    assert set(asked) == (set() if guarded else {url})


def test_states_are_sentences() -> None:
    def status(state: str, **fields: Any) -> Status:
        job = SimpleNamespace(state=state, reason="no <room>", warnings=["!"], seeds=[1], seconds=1)
        return Status(job, **fields)  # type: ignore[arg-type]

    assert "Waiting; 3 before it." in words.sentence(status("queued", place=3))
    assert "no &lt;room&gt;" in words.sentence(status("failed"))
    assert "Stopped." in words.sentence(status("cancelled"))
    assert "Drawn in 1.0 s, seed 1." in words.sentence(status("done"))
    assert "Reading" in words.sentence(status("running"))
    seen = SimpleNamespace(stage="denoising", index=3, total=9, seconds_left=100.0, preview=None)
    assert "step 3 of 9, 2 min left" in words.sentence(status("running", glimpse=seen))
