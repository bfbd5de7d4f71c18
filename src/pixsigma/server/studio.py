"""The studio: a page to draw on, made with Gradio, over the same jobs as the API."""

import asyncio
import contextlib
import io
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from PIL import Image

from pixsigma.diffusion.samplers import SAMPLERS
from pixsigma.errors import MissingExtraError, PixsigmaError
from pixsigma.requests import request_from
from pixsigma.server import studio_words as words
from pixsigma.server.events import watch
from pixsigma.server.jobs import Job
from pixsigma.server.keys import Keys
from pixsigma.server.service import JobRequest, Service, Status
from pixsigma.styles import styles

# before Gradio is imported: it would tell its makers of every start
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    import gradio as gr
except ImportError as error:
    raise MissingExtraError(
        "the studio needs gradio: pip install 'pixsigma[serve]', or serve with --no-studio"
    ) from error

EVERYBODY = "studio"
"""Whose jobs those of the page are, where there are no keys."""

HISTORY = 60
"""Pictures' jobs that the history shows."""

FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]

CSS = """
#preview img, #sheet img { image-rendering: auto; }
#status { min-height: 3.2em; }
.gradio-container { max-width: 1280px !important; margin: auto; }
@media (max-width: 640px) { .gradio-container { padding: 4px !important; } }
"""


def mount(app: FastAPI, service: Service, keys: Keys | None) -> FastAPI:
    """The application with the studio at `/`; with keys, names and keys are asked for."""
    os.environ["GRADIO_TEMP_DIR"] = str(service.data / "studio")
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])

    def known(name: str, key: str) -> bool:
        return keys is not None and keys.owner(key) == name

    return gr.mount_gradio_app(
        app,
        Studio(service).page(),
        path="/",
        auth=known if keys else None,
        allowed_paths=[str(service.results.resolve())],
        max_file_size=service.limits.max_body,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme,
        css=CSS,
    )


def client_of(request: gr.Request) -> str:
    """Whose jobs a visitor sees."""
    return getattr(request, "username", None) or EVERYBODY


@dataclass
class Studio:
    """What the page's buttons do."""

    service: Service

    # Drawing

    def submit(self, wish: dict[str, Any], who: str) -> Job:
        """Accept a wish; raises PixsigmaError."""
        model = wish["model"]
        fields = words.request_fields(wish, max(self.service.pipes[model].default_size))
        return self.submit_fields(fields, model, who)

    def submit_fields(self, fields: dict[str, Any], model: str, who: str) -> Job:
        """Accept the fields of a request; raises PixsigmaError."""
        return self.service.submit(JobRequest(request=request_from(**fields), model=model), who)

    async def draw(self, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Draw a wish: (words, preview, gallery, job's id, settings) as they come."""
        *given, request = values
        try:
            wish = dict(zip(words.WISHES, given, strict=True))
            job = await asyncio.to_thread(self.submit, wish, client_of(request))
        except PixsigmaError as error:
            yield f"**That does not work:** {error}", gr.skip(), gr.skip(), "", gr.skip()
            return
        async for out in self.follow(job.id):
            yield out

    async def follow(self, id: str) -> AsyncIterator[tuple[Any, ...]]:
        """The outputs of `draw` for a job."""
        shown = 0
        with contextlib.suppress(KeyError):
            async for status in watch(self.service, id, None, previews=True):
                seen, preview = status.glimpse, gr.skip()
                if seen is not None and seen.preview is not None and seen.num_previews > shown:
                    shown, preview = seen.num_previews, Image.open(io.BytesIO(seen.preview))
                gallery, settings = gr.skip(), gr.skip()
                if status.job.state == "done":
                    gallery, preview = self.pictures(status.job), gr.skip()
                    settings = words.told(status.job.request)
                yield words.sentence(status), preview, gallery, id, settings

    def stop(self, id: str) -> str:
        """Cancel the job that is drawn, between two steps."""
        if not id:
            return "There is nothing to stop."
        with contextlib.suppress(KeyError):
            if not self.service.status(id).job.over:
                self.service.cancel(id)
                return "Stopping…"
        return "It is over already."

    def pictures(self, job: Job) -> list[tuple[str, str]]:
        """The pictures of a job for a gallery."""
        seeds = zip(self.service.files(job), job.seeds, strict=True)
        return [(str(path), f"seed {seed}") for path, seed in seeds if path.exists()]

    def plan(self, *given: Any) -> str:
        """What the wish will cost."""
        try:
            wish = dict(zip(words.WISHES, given, strict=True))
            model = wish["model"]
            fields = words.request_fields(wish, max(self.service.pipes[model].default_size))
            return words.plan(fields, self.service.worker.speed)
        except (PixsigmaError, TypeError, ValueError):
            return ""

    # Grids

    async def grid(self, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Draw every pair of two settings: (words, sheet, ids)."""
        *given, across, across_text, down, down_text, request = values
        ids: list[str] = []
        try:
            wish = dict(zip(words.WISHES, given, strict=True))
            rows, columns = words.axis(down, down_text), words.axis(across, across_text)
            model = wish["model"]
            fields = words.request_fields(wish, max(self.service.pipes[model].default_size))
            fields.setdefault("seed", random.randrange(2**32))  # the same in every cell
            for each in words.cells(fields, (across, columns), (down, rows)):
                job = await asyncio.to_thread(self.submit_fields, each, model, client_of(request))
                ids.append(job.id)
        except PixsigmaError as error:
            await asyncio.to_thread(self.stop_all, ids)
            yield f"**That does not work:** {error}", gr.skip(), []
            return
        while True:
            found = [await asyncio.to_thread(self.status_of, id) for id in ids]
            over = [s for s in found if s is None or s.job.over]
            pictures = [self.first(status) for status in found]
            done = len(over) == len(ids)
            text = f"{words.bar(len(over), len(ids))} {len(over)} of {len(ids)} pictures"
            failed = [s for s in over if s is not None and s.job.state == "failed"]
            text += f"\n\n{words.sentence(failed[0])}" if failed else ""
            yield text, words.sheet(pictures, columns, rows), ids
            if done:
                return
            await asyncio.sleep(0.5)

    def stop_all(self, ids: list[str]) -> str:
        """Cancel a grid."""
        for id in ids:
            self.stop(id)
        return "Stopped."

    def status_of(self, id: str) -> Status | None:
        """A job's status; None where it was deleted."""
        with contextlib.suppress(KeyError):
            return self.service.status(id)
        return None

    def first(self, status: Status | None) -> Image.Image | None:
        """The first picture of a job that is done."""
        if status is None or not status.job.files:
            return None
        try:
            with Image.open(self.service.files(status.job)[0]) as image:
                return image.convert("RGB")
        except OSError:
            return None

    # History

    def history(self, request: gr.Request) -> tuple[list[tuple[str, str]], list[str]]:
        """The last pictures of this visitor, newest first, and the jobs that they are of."""
        shown, ids = [], []
        for job in self.service.store.latest(client_of(request), HISTORY):
            for path, _ in self.pictures(job):
                shown.append((path, str(job.request.get("prompt", ""))[:80]))
                ids.append(job.id)
        return shown, ids

    def settings(
        self, ids: list[str], request: gr.Request, event: gr.SelectData
    ) -> tuple[str, str]:
        """The settings of the picture that was chosen, and its job."""
        try:
            job = self.service.status(ids[event.index], client_of(request)).job
        except (KeyError, IndexError):
            return "It was deleted.", ""
        return words.told(job.request), job.id

    def again(self, id: str, request: gr.Request) -> list[Any]:
        """The settings of a job, back in the widgets."""
        try:
            fields = self.service.status(id, client_of(request)).job.request
        except KeyError:
            raise gr.Error("Choose a picture first.") from None
        return [
            fields["prompt"],
            fields["negative_prompt"],
            fields["style"] if isinstance(fields["style"], str) else "none",
            fields["width"],
            fields["height"],
            fields["num_inference_steps"],
            fields["guidance_scale"],
            fields["sampler"],
            fields["seed"],
            fields["num_images"],
        ]

    def vary(self, id: str, request: gr.Request) -> list[Any]:
        """The same with another seed."""
        values = self.again(id, request)
        values[8] = random.randrange(2**31)
        return values

    def as_input(self, id: str, request: gr.Request) -> Any:
        """The first picture of a job, to begin from."""
        try:
            picture = self.first(self.service.status(id, client_of(request)))
        except KeyError:
            picture = None
        if picture is None:
            raise gr.Error("Choose a picture first.")
        return {"background": picture, "layers": [], "composite": picture}

    # The page

    def page(self) -> gr.Blocks:
        """All widgets, and what they do."""
        with gr.Blocks(title="pixsigma", analytics_enabled=False) as page:
            gr.Markdown("# pixsigma\nSay what to draw.")
            job_id = gr.State("")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    w = self.wishes()
                with gr.Column(scale=3, min_width=300), gr.Tabs():
                    with gr.Tab("Draw"):
                        self.drawing(w, job_id)
                    with gr.Tab("Grid"):
                        self.gridding(w)
                    with gr.Tab("History") as tab:
                        self.remembering(w, page, tab)
        return page

    def wishes(self) -> dict[str, Any]:
        """The widgets of a request."""
        models = list(self.service.pipes)
        w: dict[str, Any] = {}
        w["prompt"] = gr.Textbox(
            label="Prompt", lines=2, autofocus=True, elem_id="prompt", placeholder="a red apple"
        )
        w["negative"] = gr.Textbox(label="Leave out", lines=1, placeholder="blurry")
        w["shape"] = gr.Radio(list(words.SHAPES), value="■ 1:1", label="Shape")
        with gr.Row():
            w["steps"] = gr.Slider(
                1, self.service.limits.max_steps, 20, step=1, label="Steps", elem_id="steps"
            )
            w["guidance"] = gr.Slider(0, 12, 4.5, step=0.1, label="Guidance")
        with gr.Row():
            w["seed"] = gr.Number(-1, precision=0, label="Seed (-1: any)", min_width=120)
            dice = gr.Button("🎲 Roll", min_width=60)
            w["count"] = gr.Slider(1, self.service.limits.max_images, 1, step=1, label="Pictures")
        with gr.Accordion("More", open=False):
            w["style"] = gr.Dropdown(["none", *styles()], value="none", label="Style")
            w["sampler"] = gr.Dropdown(list(SAMPLERS), value="dpm++2m", label="Sampler")
            with gr.Row():
                w["width"] = gr.Number(0, precision=0, label="Width (0: by shape)", min_width=80)
                w["height"] = gr.Number(0, precision=0, label="Height (0: by shape)", min_width=80)
            w["model"] = gr.Dropdown(models, value=models[0], label="Model")
            w["loras"] = gr.Dropdown(list(self.service.loras), multiselect=True, label="Adapters")
            w["lora_weight"] = gr.Slider(-2, 2, 1, step=0.05, label="Adapters' weight")
        with gr.Accordion("Begin from a picture", open=False):
            gr.Markdown("Paint over what is to be drawn anew; paint nothing to change it all.")
            w["canvas"] = gr.ImageEditor(
                type="pil",
                label="Picture and mask",
                sources=["upload", "clipboard"],
                transforms=(),
                layers=False,
                brush=gr.Brush(colors=["#ff3366"], color_mode="fixed"),
            )
            w["strength"] = gr.Slider(0, 1, 0.6, step=0.05, label="How far from the picture")
        dice.click(lambda: random.randrange(2**31), None, w["seed"], api_visibility="private")
        return w

    def drawing(self, w: dict[str, Any], job_id: Any) -> None:
        """The tab that draws."""
        inputs = [w[name] for name in words.WISHES]
        plan = gr.Markdown("", elem_id="plan")
        with gr.Row():
            draw = gr.Button("Draw", variant="primary", elem_id="draw")
            stop = gr.Button("Stop", variant="stop", elem_id="stop")
        status = gr.Markdown("", elem_id="status")
        preview = gr.Image(
            label="As it comes", interactive=False, elem_id="preview", height=300, buttons=[]
        )
        gallery = gr.Gallery(label="Pictures", columns=2, elem_id="gallery", format="png")
        settings = gr.Textbox(label="Settings", lines=6, interactive=False, buttons=["copy"])
        self.buttons(w, job_id)
        outputs = [status, preview, gallery, job_id, settings]
        gr.on(
            [draw.click, w["prompt"].submit],
            with_request(self.draw),
            inputs,
            outputs,
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        stop.click(self.stop, job_id, status, queue=False, api_visibility="private")
        changing = [w[name].change for name in ("shape", "steps", "count", "width", "height")]
        gr.on(changing, self.plan, inputs, plan, show_progress="hidden", api_visibility="private")

    def buttons(self, w: dict[str, Any], job_id: Any) -> None:
        """Again, vary, use as input."""
        back = [w[name] for name in words.BACK]
        with gr.Row():
            again, vary = gr.Button("Again"), gr.Button("Vary")
            use = gr.Button("Use as input")
        again.click(self.again, job_id, back, api_visibility="private")
        vary.click(self.vary, job_id, back, api_visibility="private")
        use.click(self.as_input, job_id, w["canvas"], api_visibility="private")

    def gridding(self, w: dict[str, Any]) -> None:
        """The tab that compares."""
        gr.Markdown("Every pair of two settings, the rest as at the left. Values have | between.")
        with gr.Row():
            across = gr.Dropdown(list(words.VARIED), value="guidance", label="Across")
            across_text = gr.Textbox("2 | 4.5 | 7", label="Values", elem_id="across")
        with gr.Row():
            down = gr.Dropdown(list(words.VARIED), value="steps", label="Down")
            down_text = gr.Textbox("5 | 10 | 20", label="Values", elem_id="down")
        with gr.Row():
            go = gr.Button("Draw the grid", variant="primary", elem_id="grid")
            stop = gr.Button("Stop", variant="stop")
        status, ids = gr.Markdown(""), gr.State([])
        sheet = gr.Image(label="Grid", interactive=False, elem_id="sheet", format="png")
        inputs = [w[name] for name in words.WISHES] + [across, across_text, down, down_text]
        go.click(
            with_request(self.grid),
            inputs,
            [status, sheet, ids],
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        stop.click(self.stop_all, ids, status, queue=False, api_visibility="private")

    def remembering(self, w: dict[str, Any], page: Any, tab: Any) -> None:
        """The tab of what was drawn before."""
        ids, chosen = gr.State([]), gr.State("")
        gallery = gr.Gallery(label="Drawn before", columns=4, elem_id="history", format="png")
        settings = gr.Textbox(label="Settings", lines=6, interactive=False)
        self.buttons(w, chosen)
        for event in (page.load, tab.select):
            event(self.history, None, [gallery, ids], api_visibility="private")
        gallery.select(self.settings, ids, [settings, chosen], api_visibility="private")


def with_request(stream: Any) -> Any:
    """The generator with the visitor as its last argument, which Gradio finds by annotation."""

    async def run(request: gr.Request, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        async for out in stream(*values, request):
            yield out

    return run
