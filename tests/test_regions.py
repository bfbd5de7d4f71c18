"""Parts of a picture with texts of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.test_pipeline import latents_of, pipeline

from pixsigma import InputError
from pixsigma.cli.wishes import parse_region
from pixsigma.diffusion.steering import Clause, placed
from pixsigma.editing.canvas import Canvas
from pixsigma.editing.regions import ramp, region_mask
from pixsigma.interfaces import TextFeatures
from pixsigma.requests import Region, request_from

TEXT = TextFeatures(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
ALL = (0.0, 0.0, 1.0, 1.0)


def clause(mask: float) -> Clause:
    return Clause(TEXT, region=torch.full((1, 1, 2, 2), mask))


def test_overlaps_share_and_the_prompt_has_the_rest() -> None:
    cond, one, two = (torch.full((1, 4, 2, 2), v) for v in (1.0, 3.0, 5.0))
    assert torch.equal(placed(cond, [], []), cond)
    assert placed(cond, [one], [clause(0.25)]).unique().tolist() == [1.5]
    assert placed(cond, [one, two], [clause(1.0), clause(1.0)]).unique().tolist() == [4.0]


def test_a_box_is_soft_inside_the_picture_and_hard_at_its_edge() -> None:
    line = ramp(0.0, 0.5, 8, 0.5)
    assert line[:2].tolist() == [1.0, 1.0] and line[-2:].tolist() == [0.0, 0.0]
    assert (line.diff() <= 0).all() and 0 < line[4] < 1
    assert region_mask(Region(prompt="", box=ALL), (32, 48), 8).unique().tolist() == [1.0]


def test_a_mask_is_scaled_to_the_drawing(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 255).crop((-4, 0, 4, 4)).save(tmp_path / "mask.png")
    mask = region_mask(Region(prompt="", mask=str(tmp_path / "mask.png")), (16, 32), 8)
    assert mask[0, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_a_region_keeps_its_place_in_the_whole_picture_where_a_part_is_drawn(
    tmp_path: Path, kind: str
) -> None:
    """The right half of a picture, of which the drawing shows the middle half."""
    picture = Image.new("RGB", (64, 32))
    canvas = Canvas(picture=picture, mask=None, box=(16, 0, 48, 32), multiple=16)
    Image.new("L", (8, 8), 255).crop((-8, 0, 8, 8)).save(tmp_path / "mask.png")
    place: Any = {"box": (0.5, 0.0, 1.0, 1.0), "soft": 0.0}
    place = place if kind == "box" else {"mask": str(tmp_path / "mask.png")}
    mask = region_mask(Region(prompt="", **place), canvas.size, 8, canvas)
    assert mask[0, 0].tolist() == [[0, 0, 1, 1]] * 4


def test_a_region_is_drawn_where_it_is_in_a_cropped_edit() -> None:
    """Under a mask at the right a region at the left changes nothing that is drawn."""
    pipe, picture, mask = pipeline(), Image.new("RGB", (1024, 32)), Image.new("L", (1024, 32))
    mask.paste(255, (1000, 0, 1024, 32))
    own: Any = {"seed": 1, "image": picture, "mask": mask, "inpaint_crop": True}
    own |= {"num_inference_steps": 3}

    def drawn(**more: Any) -> Any:
        return list(pipe.stream("a cat", **own, **more))[-1].latents

    left = [{"prompt": "a dog", "box": (0.0, 0.0, 0.2, 1.0), "soft": 0.0}]
    right = [{"prompt": "a dog", "box": (0.8, 0.0, 1.0, 1.0), "soft": 0.0}]
    assert drawn().shape[-1] < 1024 // 8, "a part of the picture is drawn"
    with pytest.warns(UserWarning, match="region 1 covers nothing of what is drawn"):
        torch.testing.assert_close(drawn(regions=left), drawn())
    assert not torch.allclose(drawn(regions=right), drawn())


def test_a_mask_may_be_a_picture_of_pil_or_a_path(tmp_path: Path) -> None:
    pipe, mask = pipeline(), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    mask.save(tmp_path / "mask.png")
    found = [
        latents_of(pipe, seed=1, regions=[{"prompt": "a dog", "mask": each}])
        for each in (mask, tmp_path / "mask.png", str(tmp_path / "mask.png"))
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    assert not torch.equal(found[0], latents_of(pipe, seed=1))


@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_a_region_of_everything_is_its_prompt(scale: float) -> None:
    pipe = pipeline()
    own: Any = {"seed": 1, "guidance_scale": scale}
    expected = latents_of(pipe, request="a dog", **own)
    found = latents_of(pipe, **own, regions=[{"prompt": "a dog", "box": ALL}])
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    half = latents_of(pipe, **own, regions=[{"prompt": "a dog", "box": (0.0, 0.0, 0.5, 1.0)}])
    assert not torch.allclose(half, expected)


def test_regions_go_with_and_schedules_and_others_in_one_batch() -> None:
    pipe = pipeline()
    settings: Any = {
        "prompt_syntax": "weighted",
        "regions": [{"prompt": "[a cat:a dog:0.5]", "box": (0.0, 0.5, 1.0, 1.0)}],
    }
    alone = latents_of(pipe, request="a sea AND a sky", seed=2, **settings)
    request = request_from(
        prompt="a sea AND a sky", seed=2, num_inference_steps=3, width=32, height=32, **settings
    )
    found = pipe.draw_many([request, request.model_copy(update={"seed": 9})])[0].latents
    assert found is not None and (found - alone).norm() <= 1e-4 * alone.norm()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regions": [{"prompt": "a"}]}, "a box or a mask"),
        ({"regions": [{"prompt": "a", "box": (0.5, 0.0, 0.5, 1.0)}]}, "left, top"),
        ({"regions": [{"prompt": "a", "box": ALL}], "guidance": {"pag": 3.0}}, "PAG"),
        ({"regions": [{"prompt": "a AND b", "box": ALL}], "prompt_syntax": "weighted"}, "AND"),
    ],
)
def test_what_does_not_go_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        request_from(prompt="a", **settings)


def test_the_flag() -> None:
    assert parse_region("0,0,.5,1: a: cat") == {"box": (0, 0, 0.5, 1), "prompt": "a: cat"}
    assert parse_region("m.png:a cat") == {"mask": "m.png", "prompt": "a cat"}
    with pytest.raises(InputError, match="--region"):
        parse_region("a cat")
    with pytest.raises(
        InputError, match=r"a box of --region is left,top,right,bottom, got '0,0,.5'"
    ):
        parse_region("0,0,.5:a cat")
