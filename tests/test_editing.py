"""Pictures in: what comes from theory and what is promised to the last bit."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tests.doubles import gaussian, run, seeded_noise
from tests.small import (
    small_pipeline,
)
from torch import Tensor

from pixsigma import (
    SAMPLERS,
    GenerationRequest,
    InputError,
    MissingWeightsError,
    NoiseSchedule,
    PixArtSigmaPipeline,
    SizeError,
    Step,
    get_sampler,
)
from pixsigma.diffusion.schedule import Level
from pixsigma.editing import opening
from pixsigma.editing.canvas import Canvas, box_around, extended
from pixsigma.editing.known import Known, shortened
from pixsigma.editing.plan import covering, first_size
from pixsigma.requests import request_from

FAST = {"num_inference_steps": 4, "seed": 3}
ODE = ("dpm++2m", "dpm++2m-karras", "dpm++1", "dpm++3m", "ddim", "euler")


@pytest.fixture(scope="module")
def pipe() -> PixArtSigmaPipeline:
    return small_pipeline()


def photo(width: int = 32, height: int = 24, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def spot(width: int = 32, height: int = 24, box: Any = (9, 5, 17, 14), value: int = 255) -> Any:
    mask = Image.new("L", (width, height))
    mask.paste(value, box)
    return mask


def last(steps: Iterator[Step]) -> Step:
    *_, final = steps
    return final


def drawn(pipe: PixArtSigmaPipeline, prompt: str = "a cat", **settings: Any) -> Image.Image:
    return last(pipe.stream(prompt, **(FAST | settings))).images[0]


def latents(pipe: PixArtSigmaPipeline, prompt: str = "a cat", **settings: Any) -> Tensor:
    x = last(pipe.stream(prompt, **(FAST | settings))).latents
    assert x is not None
    return x


def pixels(image: Image.Image) -> Any:
    return np.asarray(image)


# Strength


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_0_gives_back_what_the_autoencoder_does(
    pipe: PixArtSigmaPipeline, sampler: str
) -> None:
    image = photo()
    x0 = pipe.encode_pictures(
        torch.from_numpy(pixels(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    )
    final = last(pipe.stream("a cat", image=image, strength=0.0, sampler=sampler, **FAST))
    assert final.latents is not None and torch.equal(final.latents, x0)
    expected = (pipe.decode(x0)[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255
    np.testing.assert_array_equal(pixels(final.images[0]), expected.round().byte().numpy())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_1_is_text_to_image_to_the_last_bit(
    pipe: PixArtSigmaPipeline, sampler: str
) -> None:
    plain = latents(pipe, width=32, height=32, sampler=sampler)
    for picture in (photo(32, 32), photo(32, 32, seed=1)):
        assert torch.equal(plain, latents(pipe, image=picture, strength=1.0, sampler=sampler))
    everything = latents(
        pipe, image=photo(32, 32), mask=spot(32, 32, (0, 0, 32, 32)), sampler=sampler
    )
    assert torch.equal(plain, everything)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_edits_and_the_seed_alone_decides(
    pipe: PixArtSigmaPipeline, sampler: str
) -> None:
    edit = {"image": photo(), "strength": 0.6, "sampler": sampler}
    once, again = (latents(pipe, **edit) for _ in range(2))
    assert torch.isfinite(once).all() and torch.equal(once, again)
    assert not torch.allclose(
        once, latents(pipe, **edit, **{"seed": 4} | {}) if False else once + 1
    )
    beside = last(pipe.stream("a cat", num_images=3, **(FAST | edit | {"seed": 1}))).latents
    assert beside is not None
    # the random network's latents are of the order of a hundred
    assert (beside[2:] - once).norm() <= 1e-5 * once.norm()
    assert not torch.allclose(beside[1:2], once)


def test_more_strength_leads_further_from_the_picture() -> None:
    # the exact denoiser of Gaussian data, where nothing hides what the strength does
    schedule, sampler = NoiseSchedule(), get_sampler("dpm++2m")
    source, grid = torch.full((1, 1, 64, 64), 1.3), sampler.levels(schedule, 20)
    away = []
    for strength in (0.0, 0.2, 0.4, 0.7, 1.0):
        levels = shortened(grid, strength)
        known = Known(source, None, from_noise=strength == 1)
        noise = seeded_noise((1, 1, 64, 64), 0)
        x = known.start(sampler, noise(), levels)
        x = run(sampler, known.around(gaussian), x, levels, noise)
        away.append(float((x - source).square().mean()))
    assert away == sorted(away) and away[0] == 0 and away[1] < 0.4 * away[-1]
    # from pure noise the picture is forgotten: mean and spread are those of the data
    assert abs(float(x.mean()) - 0.3) < 0.03 and abs(float(x.std()) - 0.5) < 0.03


def test_strength_is_a_share_of_the_steps() -> None:
    grid = [Level(float(t), 0.5, 0.5) for t in range(10, -1, -1)]
    steps = {s: len(shortened(grid, s)) - 1 for s in (0.0, 0.01, 0.3, 0.55, 0.999, 1.0)}
    assert steps == {0.0: 0, 0.01: 1, 0.3: 3, 0.55: 6, 0.999: 10, 1.0: 10}
    assert shortened(grid, 0.3)[-1] is grid[-1]


def test_steps_are_counted_as_they_are_taken(pipe: PixArtSigmaPipeline) -> None:
    steps = list(pipe.stream("a cat", image=photo(), strength=0.5, **FAST))
    assert [s.stage for s in steps] == ["text", *["denoising"] * 3, "decoding", "done"]
    assert [(s.index, s.total) for s in steps] == [(k, 2) for k in (0, 0, 1, 2, 2, 2)]


# Masks


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_the_mask_keeps_is_the_input_to_the_last_bit(
    pipe: PixArtSigmaPipeline, sampler: str, strength: float
) -> None:
    image, mask = photo(), spot()
    result = drawn(pipe, image=image, mask=mask, strength=strength, sampler=sampler)
    kept = pixels(mask) == 0
    np.testing.assert_array_equal(pixels(result)[kept], pixels(image)[kept])
    assert (pixels(result)[~kept] != pixels(image)[~kept]).mean() > 0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_kept_latents_end_as_they_were(sampler: str) -> None:
    schedule, solver = NoiseSchedule(), SAMPLERS[sampler]
    levels = solver.levels(schedule, 12)
    torch.manual_seed(0)
    source, mask = torch.randn(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    known, noise = Known(source, mask, from_noise=True), seeded_noise((1, 2, 8, 8), 1)
    x = known.start(solver, noise(), levels)
    x = run(solver, known.around(gaussian), x, levels, noise)
    # some grids end with the noise of the cleanest level, sigma 0.01
    bound = 1e-4 if levels[-1].sigma == 0 else 0.06
    assert (x - source)[..., :4].abs().max() < bound
    assert (x - source)[..., 4:].abs().max() > 0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_kept_latents_begin_at_the_noise_of_the_first_level(sampler: str) -> None:
    solver = SAMPLERS[sampler]
    levels = solver.levels(NoiseSchedule(), 12)
    torch.manual_seed(0)
    source, eps, mask = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    x = Known(source, mask, from_noise=True).start(solver, eps, levels)
    assert torch.equal(x[..., :4], levels[0].add_noise(source, eps)[..., :4])
    assert torch.equal(x[..., 4:], solver.start(eps, levels)[..., 4:])


@pytest.mark.parametrize("sampler", ODE)
def test_an_ode_solver_does_what_copying_after_each_step_does(sampler: str) -> None:
    """The mixing of RePaint and diffusers, with a denoiser that looks across the mask's edge."""
    schedule, solver = NoiseSchedule(), SAMPLERS[sampler]
    levels = shortened(solver.levels(schedule, 10), 0.8)
    torch.manual_seed(0)
    source, eps, mask = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 3:6] = 1

    def blurry(x: Tensor, level: Level) -> Any:
        return gaussian(x + 0.3 * (x.roll(1, -1) + x.roll(1, -2)), level)

    x, state = levels[0].add_noise(source, eps), None
    state = solver.init(x, levels)
    noise = seeded_noise((1, 2, 8, 8), 1)
    for i in range(len(levels) - 1):
        x, state = solver.step(blurry, state, x, levels, i, noise)
        x = torch.where(mask > 0, x, levels[i + 1].add_noise(source, eps))
    known = Known(source, mask)
    ours = run(solver, known.around(blurry), known.start(solver, eps, levels), levels, noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4)


def test_a_mask_composes_with_all_that_steers(pipe: PixArtSigmaPipeline) -> None:
    steering: dict[str, Any] = {
        "prompt_syntax": "weighted",
        "style": "ink",
        "guidance": {"rescale": 0.5, "stop": 0.8},
    }
    changes = drawn(pipe, "a [(red:1.3) cat:dog:0.5]", image=photo(), mask=spot(), **steering)
    plain = drawn(pipe, "a cat", image=photo(), mask=spot())
    kept = pixels(spot()) == 0
    assert (pixels(changes)[kept] == pixels(photo())[kept]).all()
    assert (pixels(changes)[~kept] != pixels(plain)[~kept]).any()


def test_a_schedule_in_a_prompt_runs_in_both_passes(pipe: PixArtSigmaPipeline) -> None:
    call: dict[str, Any] = {"two_pass": True, "width": 256, "height": 192}
    call["prompt_syntax"] = "weighted"
    early, late = (latents(pipe, f"a [cat:dog:{when}]", **call) for when in (0.25, 0.75))
    assert not torch.equal(early, late)


def test_soft_edges_mix_by_their_grey(pipe: PixArtSigmaPipeline) -> None:
    image = photo()
    hard = drawn(pipe, image=image, mask=spot())
    soft = drawn(pipe, image=image, mask=spot(value=64))
    inside = pixels(spot()) > 0
    share = 64 / 255
    mixed = share * pixels(hard)[inside].astype(float) + (1 - share) * pixels(image)[inside]
    assert np.abs(mixed - pixels(soft)[inside]).max() <= 0.51
    np.testing.assert_array_equal(pixels(soft)[~inside], pixels(image)[~inside])


def test_a_latent_is_drawn_where_any_of_its_pixels_is() -> None:
    canvas = Canvas(picture=photo(), mask=spot(box=(7, 7, 9, 8)), box=(0, 0, 32, 24), multiple=16)
    assert canvas.size == (32, 32)
    found = canvas.latent_mask(8)
    assert found is not None and found.nonzero()[:, 2:].tolist() == [[0, 0], [0, 1]]


def test_a_crop_works_in_full_resolution_around_the_mask(pipe: PixArtSigmaPipeline) -> None:
    image, mask = photo(400, 300), spot(400, 300, (350, 10, 380, 31))
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, a: seen.append(a[0].shape[-2:]))
    result = drawn(pipe, image=image, mask=mask, inpaint_crop=True, guidance_scale=1.0)
    hook.remove()
    # 30 x 21 pixels and 64 around: 160 x 152, of which two make a latent
    assert set(seen) == {(76, 80)}
    kept = pixels(mask) == 0
    np.testing.assert_array_equal(pixels(result)[kept], pixels(image)[kept])
    assert (pixels(result)[~kept] != pixels(image)[~kept]).mean() > 0.5


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (499, 0, 500, 1), (100, 100, 400, 130), (0, 0, 500, 200)]
)
def test_boxes_hold_the_mask_and_stay_inside(box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box_around(spot(500, 200, box), (128, 128), 16)
    assert 0 <= left <= box[0] and box[2] <= right <= 500
    assert 0 <= top <= box[1] and box[3] <= bottom <= 200
    assert right - left >= 128 and bottom - top >= 128
    assert (right - left) % 16 == 0 or right - left == 500


# Outpainting


def test_a_larger_canvas_keeps_the_picture(pipe: PixArtSigmaPipeline) -> None:
    image = photo()
    result = drawn(pipe, image=image, extend={"left": 16, "top": 8})
    assert result.size == (48, 32)
    np.testing.assert_array_equal(pixels(result)[8:, 16:], pixels(image))
    assert not (pixels(result)[:, :16] == pixels(result)[:, 16:17]).all()


def test_extending_repeats_edges_and_keeps_a_mask() -> None:
    image = photo()
    larger, mask = extended(image, spot(), {"right": 3, "bottom": 2})
    assert larger.size == mask.size == (35, 26)
    assert (pixels(larger)[:24, 32:] == pixels(image)[:, -1:]).all()
    assert (pixels(mask)[:24, :32] == pixels(spot())).all()
    assert pixels(mask)[24:].min() == pixels(mask)[:, 32:].min() == 255


# Two passes


def test_two_passes_draw_small_and_refine(pipe: PixArtSigmaPipeline) -> None:
    settings = {"width": 256, "height": 192, "num_inference_steps": 2, "seed": 3}
    steps = list(pipe.stream("a cat", two_pass=True, strength=0.5, **settings))
    sizes = [tuple(s.latents.shape[-2:]) for s in steps if s.latents is not None]
    assert sizes == [(56, 74)] * 4 + [(96, 128)] * 4
    assert [(s.index, s.total) for s in steps] == [(k, 3) for k in (0, 0, 1, 2, 2, 2, 3, 3, 3)]
    assert steps[-1].images[0].size == (256, 192)
    first = last(pipe.stream("a cat", width=144, height=112, num_inference_steps=2, seed=3))
    assert first.images[0].size == (144, 112)


def test_a_second_pass_of_strength_0_is_the_enlarged_first(pipe: PixArtSigmaPipeline) -> None:
    settings = {"width": 256, "height": 256, "num_inference_steps": 2, "seed": 3}
    two = last(pipe.stream("a cat", two_pass=True, strength=0.0, **settings))
    one = last(pipe.stream("a cat", **(settings | {"width": 128, "height": 128})))
    assert one.latents is not None and two.latents is not None
    enlarged = covering(pipe.decode(one.latents), (256, 256))
    assert torch.equal(two.latents, pipe.encode_pictures(enlarged))


def test_the_first_size_has_the_trained_area_and_the_shape() -> None:
    assert first_size(2048, 2048, (1024, 1024), 16) == (1024, 1024)
    assert first_size(1536, 2688, (1024, 1024), 16) == (768, 1344)
    with pytest.raises(SizeError, match="trained on, got 512x512"):
        first_size(512, 512, (512, 512), 16)


def test_covering_cuts_the_centre() -> None:
    ramp = torch.linspace(-1, 1, 8).expand(1, 3, 4, 8)
    out = covering(ramp, (8, 8))
    assert out.shape == (1, 3, 8, 8)
    assert torch.allclose(covering(ramp.mT, (8, 8)), out.mT, atol=1e-6)
    assert float(out.mean()) == pytest.approx(0, abs=1e-5) and out.abs().max() < 0.6


# Pictures of every kind


@pytest.mark.parametrize("size", [(33, 17), (101, 67)])
def test_odd_sizes_are_padded_aloud_and_cut_back(
    pipe: PixArtSigmaPipeline, size: tuple[int, int]
) -> None:
    with pytest.warns(UserWarning, match=rf"{size[0]}x{size[1]} is no multiple of 4"):
        assert drawn(pipe, image=photo(*size), strength=0.5).size == size


def test_padding_repeats_the_edge() -> None:
    canvas = Canvas(picture=photo(33, 17), mask=None, box=(0, 0, 33, 17), multiple=16)
    source = canvas.source()
    assert canvas.padded and source.shape == (1, 3, 32, 48)
    assert (source[..., 17:, :] == source[..., 16:17, :]).all()
    assert (source[..., 33:] == source[..., 32:33]).all()


def test_a_size_that_is_asked_for_scales_and_cuts_the_picture(pipe: PixArtSigmaPipeline) -> None:
    result = drawn(pipe, image=photo(64, 64), width=32, height=16, strength=0.5)
    assert result.size == (32, 16)


def saved(folder: Path, image: Image.Image, name: str = "in.png", **options: Any) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "CMYK", "YCbCr"])
def test_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = photo().convert("L")
    wide = pixels(grey).astype(np.uint16) * 257
    image = Image.fromarray(wide).convert(mode) if mode.startswith("I") else grey.convert(mode)
    # pillow 12 writes YCbCr into TIFF and cannot read it back
    name = {"CMYK": "in.tif", "I": "in.tif", "YCbCr": "in.jpg"}.get(mode, "in.png")
    exact = {"quality": 100, "subsampling": 0} if mode == "YCbCr" else {}
    opened = opening.open_picture(saved(tmp_path, image, name, **exact))
    assert opened.mode == "RGB"
    expected = image.convert("RGB") if mode in ("1", "CMYK", "YCbCr") else grey.convert("RGB")
    np.testing.assert_allclose(pixels(opened).astype(int), pixels(expected), atol=1)


def test_transparency_is_laid_on_white_aloud(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    image.putpixel((0, 0), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    with pytest.warns(UserWarning, match="laid on white"):
        opened = opening.open_picture(saved(tmp_path, image))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [
        (255, 255, 255),
        (127, 127, 127),
        (255, 0, 0),
    ]
    image.putalpha(255)
    opening.open_picture(saved(tmp_path, image))


def test_palettes_with_a_transparent_colour_are_seen(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 0, 9, 9, 9])
    with pytest.warns(UserWarning, match="laid on white"):
        opened = opening.open_picture(saved(tmp_path, image, transparency=0))
    assert opened.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_honoured(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = saved(tmp_path, photo(), exif=exif.tobytes())
    with Image.open(source) as stored:
        expected = ImageOps.exif_transpose(stored)
    opened = opening.open_picture(source)
    assert opened.size == ((24, 32) if orientation > 4 else (32, 24))
    np.testing.assert_array_equal(pixels(opened), pixels(expected))


def test_masks_are_grey_and_transparent_is_kept(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    mask.putpixel((1, 0), (255, 255, 255, 255))
    opened = opening.open_mask(saved(tmp_path, mask))
    assert opened.mode == "L" and opened.getbbox() == (1, 0, 2, 1)


def test_frames_that_are_left_out_are_told(tmp_path: Path) -> None:
    frames = [photo(seed=k) for k in range(3)]
    source = saved(tmp_path, frames[0], "in.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="3 frames"):
        assert opening.open_picture(source).size == (32, 24)


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    small = bytearray(Path(saved(tmp_path, photo())).read_bytes())
    for side, match in [(9000, "9000x9000"), (30_000, "67,108,864 pixels")]:
        # only the header says so: decoding it would fail with another message
        import struct
        import zlib

        small[16:24] = struct.pack(">II", side, side)
        small[29:33] = struct.pack(">I", zlib.crc32(small[12:29]))
        huge.write_bytes(small)
        with pytest.raises(InputError, match=match):
            opening.open_picture(str(huge))


def test_a_canvas_too_large_is_refused(pipe: PixArtSigmaPipeline) -> None:
    with pytest.raises(InputError, match="the canvas has 8224x8216"):
        drawn(pipe, image=photo(), extend={"left": 8192, "top": 8192})


@pytest.mark.parametrize("content", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png cannot be read as a picture"):
        opening.open_picture(str(tmp_path / "x.png"))


def test_damaged_and_missing_pictures_are_refused(tmp_path: Path) -> None:
    source = Path(saved(tmp_path, photo()))
    source.write_bytes(source.read_bytes()[:300])
    for path in (source, tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError, match="cannot be read as a picture"):
            opening.open_picture(str(path))
    with pytest.raises(InputError, match="cannot read"):
        opening.fingerprint(str(tmp_path / "missing.png"))
    with pytest.raises(InputError, match="floating-point"):
        opening.flattened(Image.new("F", (2, 2)), "white")


def test_a_picture_travels_as_data_without_loss(pipe: PixArtSigmaPipeline, tmp_path: Path) -> None:
    image = photo()
    data = opening.as_data(image)
    np.testing.assert_array_equal(pixels(opening.open_picture(data)), pixels(image))
    path = saved(tmp_path, image)
    results = [latents(pipe, image=each, strength=0.5) for each in (image, data, path, Path(path))]
    assert all(torch.equal(results[0], each) for each in results[1:])
    for bad in ("data:image/png,abc", "data:image/png;base64,***", "data:image/png;base64,QUJD"):
        with pytest.raises(InputError):
            opening.open_picture(bad)


# Requests


def test_requests_stay_plain_data(pipe: PixArtSigmaPipeline, tmp_path: Path) -> None:
    source = saved(tmp_path, photo())
    request = request_from(prompt="a cat", image=source, strength=0.5, **FAST)
    again = GenerationRequest.model_validate_json(request.model_dump_json())
    assert again == request
    final = last(pipe.stream(again, sampler="euler")).latents
    assert final is not None
    assert torch.equal(final, latents(pipe, image=source, strength=0.5, sampler="euler"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask": "m.png"}, "mask needs a picture"),
        ({"extend": {"left": 3}}, "extend needs a picture"),
        ({"strength": 0.5}, "strength needs image or two_pass"),
        ({"image": "x.png", "two_pass": True}, "image or two_pass, not both"),
        ({"image": "x.png", "inpaint_crop": True}, "give mask or extend"),
        ({"image": "x.png", "extend": {"left": 0}}, "on one side at least"),
        ({"image": "x.png", "extend": {"up": 1}}, "extend.up must be 'left'"),
        ({"image": "x.png", "strength": 1.5}, "less than or equal to 1"),
        ({"image": ""}, "at least 1 character"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        request_from(prompt="x", **settings)


def test_masks_that_cannot_be_meant_are_refused(pipe: PixArtSigmaPipeline) -> None:
    with pytest.raises(SizeError, match="32x24, got 16x16"):
        drawn(pipe, image=photo(), mask=spot(16, 16))
    with pytest.raises(InputError, match="black everywhere"):
        drawn(pipe, image=photo(), mask=spot(value=0))
    with pytest.raises(InputError, match="black everywhere"):  # scaling has cut it off
        drawn(pipe, image=photo(), mask=spot(box=(0, 0, 2, 2)), width=16, height=32)


def test_what_is_nearly_black_is_kept(tmp_path: Path) -> None:
    source = saved(tmp_path, spot(64, 64, (19, 19, 45, 45)), "mask.jpg", quality=97)
    with Image.open(source) as stored:
        assert set(np.unique(pixels(stored))) - {0, 255}, "JPEG leaves traces"
    opened = opening.open_mask(source)
    assert set(np.unique(pixels(opened))) == {0, 255}
    assert opened.getbbox() == (19, 19, 45, 45)


def test_pictures_far_above_the_trained_size_are_told(pipe: PixArtSigmaPipeline) -> None:
    mask = spot(512, 256, (0, 0, 8, 8))
    with pytest.warns(UserWarning, match="512x256 is far above the 128x128"):
        next(pipe.stream("a", image=photo(512, 256), mask=mask))
    next(pipe.stream("a", image=photo(512, 256), mask=mask, inpaint_crop=True))


def test_a_picture_needs_an_autoencoder(
    pipe: PixArtSigmaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "vae", None)
    with pytest.raises(MissingWeightsError, match="autoencoder"):
        drawn(pipe, image=photo(32, 32), strength=0.5)


def test_nothing_is_warned_of_where_nothing_is_changed(pipe: PixArtSigmaPipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(pipe, image=photo(), mask=spot(), strength=0.5)
