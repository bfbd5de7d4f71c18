import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from pixsigma import __main__ as entry
from pixsigma.cli import COMMANDS, app, drawing, report
from pixsigma.cli.wishes import parse_lora
from pixsigma.config import TransformerConfig
from pixsigma.denoising import Step
from pixsigma.errors import (
    InputError,
    MissingExtraError,
    MissingWeightsError,
    NotFiniteError,
    OutputError,
    SizeError,
)
from pixsigma.guidance_options import GuidanceOptions
from pixsigma.images import read_settings
from pixsigma.models.transformer import PixArtTransformer
from pixsigma.requests import GenerationRequest
from pixsigma.weights.folder import save_transformer

runner = CliRunner()


class FakePipeline:
    """Draws plain pictures of the size asked for, and remembers the requests."""

    default_size = (128, 128)
    multiple = 16
    default_guidance = 3.0
    device = torch.device("cpu")
    dtype = torch.float32
    decoding = "whole"

    def __init__(self, error: BaseException | None = None) -> None:
        self.requests: list[GenerationRequest] = []
        self.error = error

    def to(self, device: object) -> "FakePipeline":
        return self

    def stream(self, request: GenerationRequest) -> Iterator[Step]:
        self.requests.append(request)
        assert request.seed is not None and request.width and request.height
        seeds = tuple(request.seed + k for k in range(request.num_images))
        total = request.num_inference_steps
        yield Step("text", total=total, seeds=seeds)
        for i in range(total):
            yield Step("denoising", i + 1, total, seeds=seeds)
        if self.error:
            raise self.error
        yield Step("decoding", total, total, seeds=seeds)
        size = request.width, request.height
        images = [Image.new("RGB", size, (seed % 256, 0, 0)) for seed in seeds]
        yield Step("done", total, total, images=images, seeds=seeds)

    def stream_many(
        self, requests: list[GenerationRequest], at_once: int
    ) -> Iterator[tuple[int, Step]]:
        for k, request in enumerate(requests):
            for step in self.stream(request):
                yield k, step


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setattr(drawing, "load", lambda job, device, dtype: fake)
    return fake


def run(*arguments: object) -> Any:
    return runner.invoke(app, [str(a) for a in arguments])


def test_a_prompt_becomes_a_file_that_says_how(pipe: FakePipeline, tmp_path: Path) -> None:
    result = run("generate", "A Red apple!", "--out", tmp_path, "--seed", 5, "--steps", 3)
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "a-red-apple-5.png"
    assert result.stdout.startswith(f"{path}  128x128  seed 5  mini  ")
    settings = read_settings(path)
    assert settings["prompt"] == "A Red apple!"
    assert (settings["seed"], settings["num_inference_steps"]) == (5, 3)
    assert (settings["model"], settings["dtype"]) == ("mini", "float32")
    assert settings["guidance_scale"] == 3.0  # the model's own


def test_settings_inside_make_the_same_request_again(pipe: FakePipeline, tmp_path: Path) -> None:
    run("generate", "x", "--out", tmp_path, "--seed", 5, "-n", 2, "--size", "64x32", "--no-clean")
    settings = read_settings(tmp_path / "x-6.png")
    fields = {key: settings[key] for key in GenerationRequest.model_fields}
    assert GenerationRequest(**fields) == pipe.requests[0].model_copy(
        update={"seed": 6, "num_images": 1}
    )


def test_json_is_one_object_a_picture_and_nothing_else(pipe: FakePipeline, tmp_path: Path) -> None:
    result = run("generate", "a", "b", "-n", 2, "--out", tmp_path, "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["a", "a", "b", "b"]
    assert rows[1]["seed"] == rows[0]["seed"] + 1
    assert all(Path(row["path"]).is_file() and row["seconds"] >= 0 for row in rows)


def test_a_seed_is_drawn_for_each_prompt_where_none_is_given(
    pipe: FakePipeline, tmp_path: Path
) -> None:
    assert run("generate", "a", "b", "--out", tmp_path).exit_code == 0
    first, second = (request.seed for request in pipe.requests)
    assert first != second


def test_nothing_is_overwritten(pipe: FakePipeline, tmp_path: Path) -> None:
    for _ in range(2):
        run("generate", "a", "--seed", 1, "--out", tmp_path / "named.png", "-n", 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["named-2.png", "named-3.png", "named-4.png", "named.png"]


def test_quiet_tells_the_names_only(pipe: FakePipeline, tmp_path: Path) -> None:
    result = run("generate", "a", "--seed", 1, "--out", tmp_path, "-q")
    assert (result.stdout, result.stderr) == (f"{tmp_path / 'a-1.png'}\n", "")


def test_flags_reach_the_request(pipe: FakePipeline, tmp_path: Path) -> None:
    flags = ["--guidance", 2, "--sampler", "ddim", "--negative", "blur", "--eta", 0.5, "--clean"]
    assert run("generate", "a", "--aspect", "16:9", *flags, "--out", tmp_path).exit_code == 0
    request = pipe.requests[0]
    assert (request.width, request.height) == (176, 96)
    assert (request.guidance_scale, request.sampler, request.negative_prompt) == (
        2,
        "ddim",
        "blur",
    )
    assert (request.eta, request.clean_caption) == (0.5, True)


def test_adapters_reach_the_request_and_the_picture(pipe: FakePipeline, tmp_path: Path) -> None:
    for name in ("ink.safetensors", "odd:2"):
        (tmp_path / name).touch()
    files = [f"{tmp_path}/ink.safetensors", f"{tmp_path}/ink.safetensors:-0.5", f"{tmp_path}/odd:2"]
    flags = [word for file in files for word in ("--lora", file)]
    result = run("generate", "a", *flags, "--out", tmp_path, "--seed", 1)
    assert result.exit_code == 0, result.stderr
    loras = [
        {"path": f"{tmp_path}/{name}", "weight": weight}
        for name, weight in (("ink.safetensors", 1.0), ("ink.safetensors", -0.5), ("odd:2", 1.0))
    ]
    assert pipe.requests[0].model_dump()["loras"] == tuple(loras)
    assert read_settings(tmp_path / "a-1.png")["loras"] == loras
    lines = tmp_path / "prompts.txt"
    lines.write_text(json.dumps({"prompt": "b", "loras": [loras[1]]}))
    assert run("generate", "--prompts", lines, "--out", tmp_path).exit_code == 0
    assert pipe.requests[1].loras[0].weight == -0.5


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("ink.safetensors", "ink.safetensors", None),
        ("ink.safetensors:0.8", "ink.safetensors", 0.8),
        ("ink:-1e-1", "ink", -0.1),
        ("ink:.5", "ink", 0.5),
        ("C:\\loras\\ink.safetensors", "C:\\loras\\ink.safetensors", None),
        ("C:\\loras\\ink.safetensors:2", "C:\\loras\\ink.safetensors", 2.0),
        ("a:b/ink", "a:b/ink", None),
        ("a:b/ink:1", "a:b/ink", 1.0),
        ("ink:heavy", "ink:heavy", None),
        (":0.5", ":0.5", None),
        ("x" * 300 + ":1", "x" * 300, 1.0),
    ],
)
def test_what_follows_the_last_colon_is_a_weight_if_it_is_a_number(
    text: str, path: str, weight: float | None
) -> None:
    assert parse_lora(text) == {"path": path} | ({} if weight is None else {"weight": weight})


@pytest.mark.parametrize("text", ["ink:nan", "ink:inf", "ink:-INF", "ink:1e999"])
def test_a_weight_that_is_not_finite(text: str) -> None:
    with pytest.raises(InputError, match="must be finite"):
        parse_lora(text)


@pytest.mark.parametrize("name", ["none.safetensors", "x" * 300, "ink:heavy"])
def test_a_missing_adapter_is_told_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(drawing, "load", lambda job, device, dtype: pytest.fail("loaded"))
    result = run("generate", "a", "--lora", tmp_path / name, "--out", tmp_path)
    assert result.exit_code != 0 and "there is none at" in result.stderr


def test_steering_flags_reach_the_request(pipe: FakePipeline, tmp_path: Path) -> None:
    guide = ["--guide", "pag=3", "--guide", "layers=0,1", "--guide", "start=0.25", "--guide", "apg"]
    own = tmp_path / "own.toml"
    own.write_text('[mine]\nprompt = "my {prompt}"\n')
    style = ["--style", "mine", "--styles", own]
    syntax = ["--syntax", "weighted", "--long-prompts", "chunk"]
    result = run("generate", "a (cat:1.2)", *guide, *style, *syntax, "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.stderr
    request = pipe.requests[0]
    expected = GuidanceOptions(pag=3, layers=(0, 1), start=0.25, apg=True)
    assert request.guidance == expected
    assert (request.prompt_syntax, request.long_prompts) == ("weighted", "chunk")
    assert request.styled_prompt == "my a (cat:1.2)"
    settings = read_settings(tmp_path / "a.png")
    fields = {key: settings[key] for key in GenerationRequest.model_fields}
    assert GenerationRequest(**fields) == request


def test_styles_are_listed(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[mine]\nprompt = "my {prompt}"\n')
    told = run("styles", "--styles", own).stdout
    assert "watercolour  a watercolour of {prompt}" in told and "my {prompt}" in told
    rows = [json.loads(line) for line in run("styles", "--json").stdout.splitlines()]
    assert len(rows) >= 12 and {"name", "prompt", "negative_prompt"} == set(rows[0])


def test_prompts_come_from_files_too(pipe: FakePipeline, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('a cat\n{"prompt": "a dog", "seed": 9, "width": 32, "height": 48}\n')
    result = run("generate", "a cow", "--prompts", file, "--seed", 3, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    told = [(r.prompt, r.seed, r.width, r.height) for r in pipe.requests]
    assert told == [("a cow", 3, 128, 128), ("a cat", 3, 128, 128), ("a dog", 9, 32, 48)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "there is nothing to draw"),
        (["x", "--size", "100x100"], 2, "multiples of 16, got 100x100; nearest: 96x96"),
        (["x", "--size", "large"], 2, "--size must be widthxheight such as 1024x768"),
        (["x", "--size", "64x64", "--aspect", "1:1"], 2, "not both"),
        (["x", "--aspect", "9:1"], 2, "between 1:4 and 4:1"),
        (["x", "--aspect", "1:0"], 2, "--aspect must be"),
        (["x", "--steps", "0"], 2, "--steps must be greater than or equal to 1, got 0"),
        (["x", "--guidance", "nan"], 2, "--guidance must be a finite number"),
        (["x", "--seed", "-1"], 2, "--seed must be"),
        (["x", "--sampler", "eular"], 2, "euler"),
        (["x", "--guide", "pga=3"], 2, "no setting 'guidance pga'; known: start, stop"),
        (["x", "--guide", "pag=much"], 2, "--guide pag must be a valid number, got 'much'"),
        (["x", "--guide", "pag=1", "--guide", "pag=2"], 2, "--guide has pag twice"),
        (["x", "--guide", "cfgpp=0.5"], 2, "take ddim, euler or euler-a"),
        (["x (y", "--syntax", "weighted"], 2, "never closed; write \\( for a plain one, at char"),
        (["x", "--style", "inc"], 2, "did you mean ink"),
        (["x", "--styles", "none.toml"], 2, "choose one with --style NAME"),
        (["x", "--device", "abacus"], 2, "no device 'abacus'"),
        (["x", "--dtype", "fp12"], 2, "--dtype must be auto, fp32, fp16, bf16, got 'fp12'"),
        (["x", "--out", "a.gif"], 2, "writes .png, .jpg, .jpeg, .webp files"),
        (["x", "--out", "a" * 250 + ".png"], 2, "at most 240 bytes"),
        (["--prompts", "missing.txt"], 2, "cannot read the prompts in missing.txt"),
    ],
)
def test_wrong_wishes_end_before_any_drawing(
    pipe: FakePipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("generate", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.startswith("pixsigma: ") and result.stderr.count("\n") == 1
    assert not pipe.requests and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_found_before_drawing(
    pipe: FakePipeline, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = run("generate", "x", "--out", tmp_path / "file" / "folder")
    assert result.exit_code == 5
    assert "cannot be written" in result.stderr
    assert not pipe.requests


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NotFiniteError("NaN in step 3"), 4, "NaN in step 3"),
        (MemoryError(), 4, "too little memory"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_ends_a_drawing_leaves_no_file(
    pipe: FakePipeline, tmp_path: Path, error: BaseException, code: int, message: str
) -> None:
    pipe.error = error
    result = run("generate", "x", "--out", tmp_path)
    assert result.exit_code == code
    assert message in result.stderr and result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_each_kind_of_error_has_its_exit_code() -> None:
    kinds = [SizeError, InputError, MissingWeightsError, NotFiniteError, MissingExtraError]
    codes = [report.exit_code(kind("x")) for kind in [*kinds, OutputError, RuntimeError]]
    assert codes == [2, 2, 3, 4, 4, 5, 1]
    assert report.exit_code(BrokenPipeError()) == 141


def test_debug_brings_the_traceback_back(
    pipe: FakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(report.DEBUG_VARIABLE, "1")
    pipe.error = NotFiniteError("NaN")
    assert isinstance(run("generate", "x", "--out", tmp_path).exception, NotFiniteError)
    monkeypatch.setenv(report.DEBUG_VARIABLE, "0")
    assert run("generate", "x", "--out", tmp_path).exit_code == 4
    assert isinstance(run("--debug", "generate", "x", "--out", tmp_path).exception, NotFiniteError)


def test_an_unexpected_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        warnings.warn("the prompt was cut", stacklevel=1)
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(entry, "app", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit) as caught:
            entry.main()
    assert caught.value.code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "pixsigma: warning: the prompt was cut"
    assert second.startswith("pixsigma: unexpected RuntimeError: two lines (`pixsigma --debug")


def test_pictures_tell_their_settings(pipe: FakePipeline, tmp_path: Path) -> None:
    run("generate", "x", "--seed", 123456, "--out", tmp_path / "a.png")
    told = run("info", tmp_path / "a.png").stdout
    assert "prompt" in told and "123456" in told
    assert json.loads(run("info", tmp_path / "a.png", "--json").stdout)["seed"] == 123456
    missing = run("info", tmp_path / "b.png")
    assert missing.exit_code == 2 and "b.png" in missing.stderr


def test_models_lists_presets_and_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    repositories = [
        SimpleNamespace(repo_id="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", size_on_disk=2_500_000),
        SimpleNamespace(repo_id="someone/my-pixart", size_on_disk=1000),
        SimpleNamespace(repo_id="someone/other", size_on_disk=1000),
    ]
    for repository in repositories:
        repository.repo_type = "model"
    cache = SimpleNamespace(repos=repositories)
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: cache)
    rows = [json.loads(line) for line in run("models", "--json").stdout.splitlines()]
    stored = {row["name"]: row["bytes_on_disk"] for row in rows}
    assert stored["sigma-1024"] == 2_500_000 and stored["sigma-512"] == 0
    assert stored["someone/my-pixart"] == 1000 and "someone/other" not in stored
    assert "on disk, 2.5 MB" in run("models").stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A transformer of 2 layers in the layout of diffusers."""
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=2, num_attention_heads=2, attention_head_dim=8, caption_channels=12
    )
    transformer = PixArtTransformer(config)
    transformer.init_weights()
    save_transformer(transformer, tmp_path / "model" / "transformer")
    return tmp_path / "model"


def test_weights_are_described_and_converted(folder: Path, tmp_path: Path) -> None:
    told = run("info", folder).stdout
    assert "sigma, 1024px" in told and "2 layers, width 16, 2 heads" in told
    known = json.loads(run("info", folder, "--json").stdout)
    assert (known["num_layers"], known["width"]) == (2, 16)
    result = run("convert", folder, tmp_path / "a.pth", "--to", "pth")
    assert result.exit_code == 0, result.stderr
    assert "all tensors compared equal" in result.stdout
    run("convert", tmp_path / "a.pth", tmp_path / "back", "--to", "diffusers")
    ours, back = (
        load_file(path / "transformer" / "diffusion_pytorch_model.safetensors")
        for path in (folder, tmp_path / "back")
    )
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[key], back[key]) for key in ours)


def test_conversion_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"dear")
    result = run("convert", folder, tmp_path / "a.pth", "--to", "pth")
    assert (result.exit_code, (tmp_path / "a.pth").read_bytes()) == (5, b"dear")
    assert "exists already" in result.stderr


@pytest.mark.parametrize("command", [["info"], ["convert", "--to", "pth"]])
def test_weights_that_cannot_be_used_end_with_code_3(command: list[str], tmp_path: Path) -> None:
    target = [tmp_path / "b.pth"] if "convert" in command else []
    missing = run(*command, tmp_path / "missing", *target)
    assert missing.exit_code == 3 and "there is nothing at" in missing.stderr
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    cut = run(*command, tmp_path / "cut.safetensors", *target)
    assert cut.exit_code == 3 and "cut.safetensors" in cut.stderr
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.stdout


def test_the_door_itself() -> None:
    assert run("--version").stdout.startswith("pixsigma ")
    assert run("paint").exit_code == 2
    assert run("generate", "--frobnicate").exit_code == 2


# What only a process of its own shows


def python(code: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell starts what runs in its background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


HEAVY = """
import sys
from pixsigma.cli import app
try:
    app(sys.argv[1:])
except SystemExit:
    pass
heavy = {"torch", "pydantic", "huggingface_hub", "numpy", "PIL", "accelerate"}
heavy |= {"torch._dynamo", "torch._inductor", "sympy", "diffusers", "transformers", "matplotlib"}
print("\\nheavy:", *sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    output, _ = python(HEAVY, *arguments).communicate(timeout=280)
    heavy = set(output.splitlines()[-1].split()) - {"heavy:"}
    if "generate" in arguments:
        heavy.discard("pydantic")  # recent versions of typer read a command's flags with it
    assert not heavy


def test_a_picture_takes_torch_and_no_compiler(tmp_path: Path) -> None:
    arguments = ("generate", "x", "--steps", "1", "--quiet", "--out", tmp_path)
    output, told = python(HEAVY, *arguments).communicate(timeout=280)
    assert list(tmp_path.glob("*.png")), told
    heavy = set(output.splitlines()[-1].split()) - {"heavy:"}
    assert heavy <= {"torch", "pydantic", "numpy", "PIL"}


SLOW = """
import sys, time
from pixsigma.__main__ import main
from pixsigma.cli import drawing
from pixsigma.denoising import Step

class Slow:
    default_size = (64, 64)
    multiple = 16
    default_guidance = 4.5
    def to(self, device):
        return self
    def stream_many(self, requests, at_once):
        yield 0, Step("text", total=3)
        print("begun", flush=True)
        time.sleep(60)

drawing.load = lambda job, device, dtype: Slow()
main()
"""


def test_ctrl_c_in_the_middle_ends_with_130_and_no_file(tmp_path: Path) -> None:
    process = python(SLOW, "generate", "x", "--out", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    output, told = process.communicate(timeout=280)
    assert process.returncode == 130
    assert output == "" and told == "pixsigma: stopped; no half-written file is left\n"
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_error_to_talk_about() -> None:
    process = python("from pixsigma.__main__ import main; main()", "models")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=280) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_the_module_runs_as_the_command_does(tmp_path: Path) -> None:
    code = "import runpy; runpy.run_module('pixsigma', run_name='__main__', alter_sys=True)"
    process = python(code, "generate", "x", "--size", "33x32", cwd=tmp_path)
    output, told = process.communicate(timeout=280)
    assert process.returncode == 2 and output == ""
    assert (
        told.startswith("pixsigma: width and height must be multiples of 16")
        and told.count("\n") == 1
    )


def test_help_shows_the_whole_prompt_language_and_a_switch_is_no_number() -> None:
    told = re.sub(r"[\s│]+", " ", run("generate", "--help").stdout)
    assert "(red:1.3), [dawn:dusk:0.4], AND" in told
    refused = run("generate", "a", "--guide", "pag")
    assert refused.exit_code == 2 and "--guide pag needs a value" in refused.stderr


def test_a_converted_transformer_tells_how_to_draw_with_it(tmp_path: Path) -> None:
    made = run("convert", "mini", tmp_path / "a.pth", "--to", "pth")
    assert f"--model {tmp_path / 'a.pth'} --text-and-vae mini" in made.stdout


@pytest.mark.parametrize("command", [("bench",), ("generate", "a"), ("serve",)])
def test_a_model_that_is_nowhere_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pixsigma.cli.serve.check_free", lambda host, port: None)
    result = run(*command, "--model", "nowhere")
    assert result.exit_code == 3 and "nothing at nowhere" in result.stderr
    assert not list(tmp_path.iterdir())
