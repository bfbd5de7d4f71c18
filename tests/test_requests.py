from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pixsigma.errors import InputError, PromptFileError, SizeError
from pixsigma.guidance_options import GuidanceOptions
from pixsigma.requests import LARGEST_SEED, GenerationRequest, parse_prompt_file, request_from


def test_defaults_leave_to_the_model_what_suits_it() -> None:
    assert GenerationRequest(prompt="a cat").model_dump() == {
        "prompt": "a cat",
        "negative_prompt": "",
        "width": None,
        "height": None,
        "num_inference_steps": 20,
        "guidance_scale": None,
        "sampler": "dpm++2m",
        "seed": None,
        "num_images": 1,
        "clean_caption": None,
        "null_caption": "own",
        "eta": 0.0,
        "image": None,
        "mask": None,
        "strength": None,
        "extend": None,
        "inpaint_crop": False,
        "two_pass": False,
        "tiled": False,
        "loras": (),
        "guidance": GuidanceOptions().model_dump(),
        "prompt_syntax": "plain",
        "long_prompts": "truncate",
        "style": None,
        "control": (),
        "fast": False,
        "regions": (),
    }
    assert GuidanceOptions().plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "prompt is missing"),
        ({"prompt": 3}, "prompt must be a valid string, got 3"),
        ({"prompt": "x", "steps": 3}, "there is no setting 'steps'; known: prompt, negative"),
        ({"prompt": "x", "loras": [{"weight": 1}]}, r"loras\.0\.path is missing"),
        ({"prompt": "x", "loras": [{"path": "a", "at": 1}]}, r"loras\.0\.at .*not permitted"),
        ({"prompt": "x", "loras": [{"path": "a", "weight": 1e999}]}, r"0\.weight must be a finite"),
        ({"prompt": "x", "num_inference_steps": 0}, "num_inference_steps must be greater than or"),
        ({"prompt": "x", "image": "a", "tiled": True, "strength": 1.0}, "tiled refines"),
        ({"prompt": "x", "two_pass": True, "tiled": True, "strength": 1.0}, "tiled refines"),
        ({"prompt": "x", "num_inference_steps": 2.5}, "must be a valid integer, got 2.5"),
        ({"prompt": "x", "num_inference_steps": True}, "must be a valid integer, got True"),
        ({"prompt": "x", "guidance_scale": float("nan")}, "must be a finite number, got nan"),
        ({"prompt": "x", "guidance_scale": float("inf")}, "finite number|less than or equal"),
        ({"prompt": "x", "guidance_scale": -1}, "greater than or equal to 0, got -1"),
        ({"prompt": "x", "seed": -1}, "seed must be greater than or equal to 0"),
        ({"prompt": "x", "seed": LARGEST_SEED + 1}, "seed must be less than or equal to"),
        ({"prompt": "x", "seed": LARGEST_SEED, "num_images": 2}, "count the seed beyond"),
        ({"prompt": "x", "num_images": 0}, "num_images must be greater than or equal to 1"),
        ({"prompt": "x", "eta": 1.5}, "eta must be less than or equal to 1"),
        ({"prompt": "x", "sampler": ""}, "sampler must have at least 1 character"),
        (
            {"prompt": "x", "guidance": {"pga": 3.0}},
            "no setting 'guidance pga'; known: start, stop",
        ),
        ({"prompt": "x", "guidance": {"rescale": 2.0}}, "guidance rescale must be less than"),
        ({"prompt": "x", "guidance": {"layers": [1.5], "pag": 1.0}}, "guidance layers 0 must be"),
        ({"prompt": "x", "guidance": {"pag": 1.0, "seg": 1.0}}, "both disturb self-attention"),
        ({"prompt": "x", "prompt_syntax": "odd"}, "prompt_syntax must be 'plain' or 'weighted'"),
        ({"prompt": "a (x", "prompt_syntax": "weighted"}, r"never closed.*a \^\(x"),
        ({"prompt": "a", "negative_prompt": "[b", "prompt_syntax": "weighted"}, "never closed"),
        (
            {"prompt": "a", "negative_prompt": "b AND c", "prompt_syntax": "weighted"},
            "write the negative prompt as one text",
        ),
        (
            {"prompt": "a AND b", "prompt_syntax": "weighted", "guidance": {"pag": 1.0}},
            "disturb one text",
        ),
        (
            {"prompt": "x", "prompt_syntax": "weighted", "null_caption": "prompt"},
            "mask of one plain prompt",
        ),
        ({"prompt": "x", "style": "watercolor"}, "no style 'watercolor': did you mean watercolour"),
        ({"prompt": "x", "style": {"prompt": "no place"}}, "exactly once, got 'no place'"),
        ({"prompt": "x", "width": 512}, "give both width and height, or neither"),
        ({"prompt": "\udcff"}, "prompt must be a valid string"),
        ({"prompt": "x" * 100_001}, r"prompt must have at most 100000 characters, got 'x+\.\.\."),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        request_from(**settings)
    assert "\n" not in str(caught.value)


def test_sizes_are_refused_with_the_nearest_named() -> None:
    assert request_from(prompt="x", width=1344, height=768).width == 1344
    with pytest.raises(SizeError, match="multiples of 16, got 100x128; nearest: 96x128 or 112x128"):
        request_from(prompt="x", width=100, height=128)


def test_fields_can_be_named_as_the_person_knows_them() -> None:
    with pytest.raises(InputError, match="--steps must be"):
        request_from({"num_inference_steps": "--steps"}, prompt="x", num_inference_steps=-1)


def test_requests_are_frozen() -> None:
    request = GenerationRequest(prompt="x")
    with pytest.raises(ValidationError, match="frozen"):
        request.seed = 3  # type: ignore[misc]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_prompt_files_hold_lines_and_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "\ufeffa red apple\r\n\n  a blue café  \n"
        '{"prompt": "a cat", "seed": 5, "width": 64, "height": 32}\n',
    )
    plain, second, own = parse_prompt_file(path, {"num_inference_steps": 4, "seed": 1})
    assert (plain.prompt, plain.num_inference_steps, plain.seed) == ("a red apple", 4, 1)
    assert second.prompt == "a blue café"
    assert (own.seed, own.width, own.height, own.num_inference_steps) == (5, 64, 32, 4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": "x", "seed": }', "must be a JSON object: .* at column 25"),
        ('{"prompt": "x", "colour": 1}', "no setting 'colour'"),
        ('{"prompt": "x", "seed": 1, "seed": 2}', "stands twice"),
        ('{"prompt": "x", "guidance_scale": NaN}', "finite number"),
        ('{"prompt": "x", "width": 33, "height": 32}', "multiples of 16"),
        ('{"seed": 1}', "needs a prompt"),
        ('{"prompt": "x"} and more', "must be a JSON object"),
        (b"\xff\xfe", "codec can't decode"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str | bytes, message: str) -> None:
    raw = bad if isinstance(bad, bytes) else bad.encode()
    path = write(tmp_path, b"fine\n\n" + raw + b"\nfine\n")
    with pytest.raises(PromptFileError, match=rf"line 3 of .*prompts\.txt: .*{message}"):
        parse_prompt_file(path)


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="holds no prompt"):
        parse_prompt_file(write(tmp_path, "\n \n"))
    with pytest.raises(PromptFileError, match="cannot read the prompts"):
        parse_prompt_file(tmp_path / "missing.txt")
    with pytest.raises(PromptFileError, match="cannot read the prompts"):
        parse_prompt_file(tmp_path)
