"""The studio as a person meets it: a browser without a screen draws, stops, compares, comes back.

Every test also fails where the page asked any other server for anything, or broke a rule of its own
content security policy.
"""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from tests.serving import OF_GRADIO, listening

from pixsigma.editing.opening import open_mask, open_picture
from pixsigma.images import write_picture
from pixsigma.server.studio import drawing, words
from pixsigma.server.worker import Worker

pytest.importorskip("gradio", reason="needs gradio: pip install 'pixsigma[serve]'")
api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",  # containers give it too little
]
PATIENCE = 240
"""Seconds that a state is waited for: machines may be busy, and none of these tests is a race."""

thorough = pytest.mark.thorough
"""Left out where time is short: `pytest -m 'not thorough'`."""

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium"),
    pytest.mark.skipif(
        "PIXSIGMA_BROWSER" not in os.environ, reason="takes minutes: set PIXSIGMA_BROWSER=1"
    ),
    pytest.mark.timeout(1200),
    *OF_GRADIO,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with listening(folder, studio=True) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as play:
        try:
            browser = play.chromium.launch(
                executable_path=BROWSER, args=FLAGS, timeout=PATIENCE * 1000
            )
        except api.Error as error:
            pytest.skip(f"{BROWSER} does not start here: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


class Visit:
    """One window, and what it asked for."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.address = address
        self.context = browser.new_context(
            **{"viewport": {"width": 1200, "height": 900}, **settings}
        )
        self.context.set_default_timeout(PATIENCE * 1000)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))

    def open(self) -> Any:
        self.page.goto(self.address)
        self.page.locator("#prompt textarea").wait_for()
        return self.page

    def close(self) -> None:
        self.context.close()
        ours = urlsplit(self.address).netloc
        remote = [
            url for url in self.asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")
        ]
        assert {urlsplit(url).netloc for url in remote} == {ours}
        assert not [text for text in self.said if "Content Security Policy" in text]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    visit.close()


@pytest.fixture
def page(visit: Visit) -> Any:
    return visit.open()


def jobs(folder: Path) -> list[dict[str, Any]]:
    """All jobs of the server, the oldest first."""
    base = sqlite3.connect(folder / "jobs.sqlite")
    rows = base.execute("SELECT state, request FROM jobs ORDER BY number").fetchall()
    base.close()
    return [{"state": state, **json.loads(request)} for state, request in rows]


def until(folder: Path, num: int) -> list[dict[str, Any]]:
    """All jobs, once there are `num` and the last is over."""

    def over() -> bool:
        found = jobs(folder)
        return len(found) >= num and found[-1]["state"] not in ("queued", "running")

    wait_until(over, f"{num} jobs were to be over")
    return jobs(folder)


def wait_until(reached: Callable[[], bool], told: str) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, told
        time.sleep(0.1)


def at_rest(widget: Any) -> bytes:
    """What a widget looks like, once that stays the same."""
    seen = b""

    def resting() -> bool:
        nonlocal seen
        before, seen = seen, widget.screenshot()
        return seen == before

    wait_until(resting, "it does not come to rest")
    return seen


def paint(page: Any) -> None:
    """A stroke across the middle of the picture in the editor."""
    page.locator("#canvas button[aria-label=Undo]:not([disabled])").wait_for()  # it is in
    sheet = page.locator("#canvas canvas").first
    before = at_rest(sheet)
    box = sheet.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=8)
    page.mouse.up()
    page.mouse.move(0, 0)  # the brush's own ring is no paint
    wait_until(lambda: at_rest(sheet) != before, "no stroke is seen")


def unfold(page: Any, id: str) -> None:
    page.locator(f"#{id} button.label-wrap").first.click()


def fill(page: Any, id: str, value: object) -> None:
    given = ", ".join(f"#{id} {kind}" for kind in ("input[type=number]", "textarea", "[type=text]"))
    page.locator(given).first.fill(str(value))
    page.keyboard.press("Tab")


def draw(page: Any, prompt: str = "a red apple") -> Any:
    """Draw by keyboard; returns the picture."""
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#prompt textarea").press("Enter")
    return drawn(page)


def drawn(page: Any) -> Any:
    page.locator("#status .done", has_text="Drawn in").wait_for()
    picture = page.locator("#gallery img").first
    picture.wait_for()
    page.wait_for_function("document.querySelector('#gallery img').naturalWidth > 0")
    return picture


def test_a_fresh_page_shows_what_can_be_done(page: Any) -> None:
    page.locator("#plan", has_text="20 steps").wait_for()
    page.wait_for_timeout(1500)  # for what comes when it is loaded
    assert page.locator("#draw").inner_text() == "Draw"
    assert page.locator("#stop").inner_text() == "Stop"
    assert "Your picture appears here" in page.locator("#preview").inner_text()


def test_a_prompt_becomes_a_picture(page: Any, folder: Path) -> None:
    page.get_by_role("button", name="a red fox asleep in autumn leaves").click()
    assert "fox" in page.locator("#prompt textarea").input_value()
    page.locator("#draw").click()
    drawn(page)
    size = page.evaluate(
        "(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#gallery img'))"
    )
    assert size == [128, 128] and jobs(folder)[-1]["prompt"].startswith("a red fox")
    page.get_by_role("button", name="How it was drawn").first.click()
    told = page.locator(".told textarea").first
    page.wait_for_function("document.querySelector('.told textarea')?.value.includes('sampler')")
    assert "a red fox" in told.input_value() and "seed: " in told.input_value()


@thorough
def test_pictures_lead_to_pictures(page: Any, folder: Path) -> None:
    draw(page)
    # neither previews nor pictures are copied where deleting does not reach them
    assert not list((folder / "studio").rglob("*.*"))
    for button, begun in (("again", False), ("vary", True)):
        before = len(jobs(folder))
        page.locator(f"button.{button}").first.click()
        found = until(folder, before + 1)
        page.locator(f"button.{button}").first.wait_for()
        drawn(page)
        assert len(found) == before + 1 and found[-1]["state"] == "done"
        assert found[-1]["prompt"] == "a red apple" and bool(found[-1]["image"]) is begun
        assert found[-1]["seed"] != found[-2]["seed"]


@thorough
def test_what_is_painted_is_drawn_anew(page: Any, folder: Path) -> None:
    draw(page, "a house")
    page.locator("button.use").first.click()
    paint(page)
    before = len(jobs(folder))
    page.locator("#prompt textarea").fill("a tree")
    page.locator("#draw").click()
    (job,) = until(folder, before + 1)[before:]
    assert job["state"] == "done"
    assert (job["width"], job["height"], job["strength"]) == (128, 128, 0.6)
    mask = open_mask(job["mask"])
    assert open_picture(job["image"]).size == mask.size == (128, 128)
    white = sum(1 for value in mask.get_flattened_data() if value == 255)
    assert 10 < white < 128 * 128 / 2


@thorough
def test_an_uploaded_picture_sets_the_shape(page: Any, tmp_path: Path, folder: Path) -> None:
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "photo.png")
    unfold(page, "begin")
    page.locator("#canvas canvas").first.wait_for()  # before that nobody could choose a file
    page.locator("#canvas input[type=file]").first.set_input_files(tmp_path / "photo.png")
    page.locator("#shape label.selected", has_text="3:2").wait_for()
    draw(page, "a lake")
    job = jobs(folder)[-1]
    assert job["image"] and job["mask"] is None and job["width"] > job["height"]


@thorough
def test_heavy_drawings_ask_first(page: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(page)
    before = len(jobs(folder))
    monkeypatch.setattr(words, "HEAVY_SECONDS", 0)
    monkeypatch.setattr(drawing, "PATIENCE_SECONDS", PATIENCE)
    page.locator("#draw").click()
    page.locator("#status .heavy", has_text="This is heavy").wait_for()
    assert len(jobs(folder)) == before
    page.locator("#sure").click()
    assert until(folder, before + 1)[-1]["state"] == "done"
    page.locator("#sure").wait_for(state="hidden")


def linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let drawings stay at their fifth step until they are stopped."""
    monkeypatch.setattr(words, "is_heavy", lambda estimate: False)
    look = Worker._look

    def stay(worker: Worker, live: Any, step: Any, now: float) -> None:
        """A step that lasts until it is stopped."""
        look(worker, live, step, now)
        end = now + PATIENCE
        while step.index == 5 and live.stop is None and time.monotonic() < end:
            time.sleep(0.05)
            look(worker, live, step, time.monotonic())

    monkeypatch.setattr(Worker, "_look", stay)


def test_stop_really_stops(page: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linger(monkeypatch)
    unfold(page, "settings")
    fill(page, "steps", 100)
    page.locator("#prompt textarea").fill("a clock")
    page.keyboard.press("Control+Enter")
    page.locator("#status progress").wait_for()
    page.locator("#status", has_text="step 5 of 100").wait_for()
    page.locator("#prompt textarea").press("Enter")
    page.locator(".toast-body", has_text="One drawing at a time").wait_for()
    assert "left" in page.locator("#status").inner_text()
    page.locator("img.coming").wait_for()
    page.keyboard.press("Escape")
    page.locator("#status", has_text="Stopped.").wait_for()
    assert jobs(folder)[-1]["state"] == "cancelled"
    assert page.locator("#stop").is_disabled() and page.locator("img.coming").count() == 0


@thorough
def test_a_drawing_outlives_its_page(
    page: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(page)
    linger(monkeypatch)
    page.locator("#draw").click()
    page.locator("#status", has_text="step 5 of 20").wait_for()
    page.get_by_role("tab", name="History").click()
    page.locator("#history img").first.click()
    page.keyboard.press("Escape")  # closes the picture, and stops nothing
    page.locator("#history .preview").wait_for(state="hidden")
    page.reload()
    page.locator("#status", has_text="step 5 of 20").wait_for()
    assert jobs(folder)[-1]["state"] == "running"
    page.locator("#stop:enabled").click()
    page.locator("#status", has_text="Stopped.").wait_for()


@thorough
def test_what_is_saved_tells_what_it_shows(
    page: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "is_heavy", lambda estimate: False)  # on busy machines it asks
    draw(page, "a red apple")
    with page.expect_download() as saving:
        page.locator("#gallery button[aria-label=Download]").click()
    assert saving.value.suggested_filename == f"a-red-apple-{jobs(folder)[-1]['seed']}.png"


@thorough
def test_a_file_fills_the_form(page: Any, folder: Path, tmp_path: Path) -> None:
    settings = {"prompt": "a teal house", "seed": 41, "num_inference_steps": 9, "two_pass": True}
    path = write_picture(Image.new("RGB", (8, 8)), tmp_path, "house", settings)
    unfold(page, "settings")
    with page.expect_file_chooser() as asking:
        page.locator("#file").click()
    asking.value.set_files(path)
    page.locator(".toast-body", has_text="two_pass, model").wait_for()
    assert page.locator("#prompt textarea").input_value() == "a teal house"
    page.locator("#draw").click()
    drawn(page)
    job = jobs(folder)[-1]
    assert (job["seed"], job["num_inference_steps"]) == (41, 9)


@thorough
def test_pictures_are_drawn_on(page: Any, folder: Path) -> None:
    draw(page, "a tree")
    side = page.evaluate("document.querySelector('#gallery img').naturalWidth")
    for button, width in (("Extend left", side + side // 4), ("Enlarge", 2 * (side + side // 4))):
        before = len(jobs(folder))
        page.locator(".tools button:visible", has_text=button).click()
        assert until(folder, before + 1)[-1]["state"] == "done"
        wide = "width => document.querySelector('#gallery img')?.naturalWidth == width"
        page.wait_for_function(wide, arg=width)


@thorough
def test_half_written_numbers_and_other_files_are_no_riddles(page: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    unfold(page, "settings")
    for value in ("", "1000", "7"):
        page.locator("#steps input[type=number]").fill(value)
        page.wait_for_timeout(1000)
    page.locator("#plan", has_text="7 steps").wait_for()
    assert page.locator(".toast-body").count() == 0
    unfold(page, "begin")
    page.locator("#canvas canvas").first.wait_for()
    page.locator("#canvas input[type=file]").first.set_input_files(tmp_path / "text.png")
    page.locator("#begin .wrong", has_text="must be PNG, JPEG or WebP").wait_for()


def test_what_is_wrong_is_said(page: Any, folder: Path) -> None:
    before = len(jobs(folder))
    page.locator("#draw").click()
    page.locator("#status .wrong", has_text="write what to draw first").wait_for()
    unfold(page, "settings")
    fill(page, "width", 33)
    fill(page, "height", 64)
    page.locator("#prompt textarea").fill("a cat")
    page.locator("#draw").click()
    page.locator("#status .wrong", has_text="multiples of 16, got 33x64").wait_for()
    page.locator("#shape label", has_text="2:3").click()  # takes the sides back
    page.wait_for_function("document.querySelector('#width input').value === ''")
    assert len(jobs(folder)) == before


@thorough
def test_dice_throw_a_seed(page: Any, folder: Path) -> None:
    unfold(page, "settings")
    seed = page.locator("#seed").locator("input, textarea").first
    seed.wait_for()
    for box in ("seed", "width", "height"):
        assert page.locator(f"#{box}").locator("input, textarea").first.input_value() == ""
    page.locator("#dice").click()
    wait_until(lambda: seed.input_value() != "", "no seed was thrown")
    thrown = int(seed.input_value())
    draw(page)
    found = jobs(folder)
    assert found[-1]["seed"] == thrown
    fill(page, "seed", "")
    page.locator("#draw").click()
    assert until(folder, len(found) + 1)[-1]["seed"] != thrown
    fill(page, "seed", "seven")
    page.locator("#draw").click()
    page.locator("#status .wrong", has_text="seed must be a whole number").wait_for()


@thorough
def test_two_settings_side_by_side(page: Any) -> None:
    page.locator("#prompt textarea").fill("a bird")
    page.get_by_role("tab", name="Side by side").click()
    fill(page, "across", "1 | 3 | 5")
    fill(page, "down", "2 | x")
    page.locator("#grid").click()
    page.locator("#grid_status .wrong", has_text="must be numbers").wait_for()
    fill(page, "down", "2 | 4")
    page.locator("#grid").click()
    page.locator("#sheet a.save").wait_for()
    assert page.locator("#sheet td img").count() == 6
    loaded = "[...document.querySelectorAll('#sheet td img')].every(i => i.naturalWidth === 128)"
    page.wait_for_function(loaded)
    assert page.locator("#sheet th[scope=row]").all_inner_texts() == ["2", "4"]


@thorough
def test_history_outlives_the_server(browser: Any, tmp_path: Path) -> None:
    for prompt in ("the first", ""):
        with listening(tmp_path, studio=True) as address:
            visit = Visit(browser, address)
            page = visit.open()
            if prompt:
                draw(page, prompt)
                visit.close()
                continue
            page.get_by_role("tab", name="History").click()
            page.locator("#history img").first.click()
            page.locator("button.take:visible").click()
            page.wait_for_function(
                "document.querySelector('#prompt textarea').value === 'the first'"
            )
            page.locator("button.delete:visible").click()
            page.locator("#nothing", has_text="Nothing was drawn yet").wait_for()
            assert jobs(tmp_path) == [] and not list((tmp_path / "results").iterdir())
            visit.close()


@thorough
def test_a_key_opens_the_page(browser: Any, tmp_path: Path) -> None:
    from pixsigma.server.keys import add_key, read_keys

    key = add_key(tmp_path / "keys", "ann")
    with listening(tmp_path, studio=True, keys=read_keys(tmp_path / "keys")) as address:
        visit = Visit(browser, address)
        page = visit.page
        page.goto(address)
        name, secret = page.locator("input").nth(0), page.locator("input[type=password]")
        for given in ("ps-wrong", key):
            name.fill("ann")
            secret.fill(given)
            page.get_by_role("button", name="Login").click()
            if given != key:
                page.get_by_text("Incorrect").first.wait_for()
                assert page.locator("#prompt").count() == 0
        page.locator("#prompt textarea").wait_for()
        draw(page)
        page.get_by_role("link", name="sign out").click()
        page.locator("input[type=password]").wait_for()
        visit.close()
        base = sqlite3.connect(tmp_path / "jobs.sqlite")
        assert base.execute("SELECT DISTINCT client FROM jobs").fetchall() == [("ann",)]
        base.close()


def brightness(page: Any) -> int:
    """Of the writing, red, green and blue together."""
    colour = page.evaluate("getComputedStyle(document.querySelector('#top h1')).color")
    return sum(map(int, colour.strip("rgba()").split(",")[:3]))


@pytest.mark.parametrize("width", [360, 768])
def test_small_screens_hold_it(browser: Any, address: str, width: int) -> None:
    visit = Visit(browser, address, viewport={"width": width, "height": 740}, color_scheme="dark")
    page = visit.open()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#draw").bounding_box()["y"] < 400  # without scrolling
    assert brightness(page) > 500
    page.locator("#shade").click()
    page.wait_for_function("!document.body.classList.contains('dark')")
    page.reload()
    page.locator("#prompt textarea").wait_for()
    page.wait_for_function("!document.body.classList.contains('dark')")
    assert brightness(page) < 300
    visit.close()


def test_the_keyboard_reaches_everything(page: Any) -> None:
    seen = []
    page.locator("#prompt textarea").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "(e => e.closest('#draw, #shape, #scale, #count, #settings, #begin, #tabs, #chips')"
                "?.id)(document.activeElement)"
            )
        )
    assert list(dict.fromkeys(filter(None, seen)))[:2] == ["chips", "draw"]
    assert {"tabs", "shape", "scale", "count", "settings", "begin"} <= set(seen)
    page.locator("#shape input").nth(1).focus()
    page.keyboard.press("Space")
    page.locator("#shape label.selected", has_text="3:2").wait_for()
    outline = "getComputedStyle(document.querySelector('#draw')).outlineStyle"
    page.locator("#prompt textarea").focus()
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "draw"
    assert page.evaluate(outline) != "none"
