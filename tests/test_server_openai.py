"""OpenAI's own client draws, edits, streams and is refused."""

import base64
import io
import urllib.request
from collections.abc import Iterator

import openai
import pytest
from PIL import Image
from tests.serving import listening

from pixsigma.server.keys import Keys, hashed
from pixsigma.server.policy import Policy

OWN = {"num_inference_steps": 3, "seed": 4}
SIZE = "32x32"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    policy = Policy(before=[lambda r: "no wars" if "war" in r.prompt else None])
    keys = Keys({"ann": hashed("ps-secret")})
    with (
        listening(tmp_path_factory.mktemp("server"), policy=policy, keys=keys) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="ps-secret", max_retries=0) as client,
    ):
        yield client


def opened(b64: str | None) -> Image.Image:
    assert b64 is not None
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    image.load()
    return image


def png(mode: str = "RGB", colour: object = "orange", size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "pixsigma"
    with pytest.raises(openai.NotFoundError, match="this server has small"):
        client.models.retrieve("dall-e-2")


def test_pictures_are_drawn_in_number_size_and_format(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="a cat", n=2, size=SIZE, output_format="webp", model="small", extra_body=OWN
    )
    assert answer.data is not None
    pictures = [opened(each.b64_json) for each in answer.data]
    assert [(p.format, p.size) for p in pictures] == [("WEBP", (32, 32))] * 2
    again = client.images.generate(
        prompt="a cat", size=SIZE, output_format="webp", extra_body=OWN | {"seed": 5}
    )
    assert again.data is not None
    assert opened(again.data[0].b64_json).tobytes() == pictures[1].tobytes()


def test_urls_are_fetched_without_a_key(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="a cat", size=SIZE, response_format="url", extra_body=OWN
    )
    assert answer.data is not None and answer.data[0].url is not None
    with urllib.request.urlopen(answer.data[0].url) as fetched:
        assert Image.open(io.BytesIO(fetched.read())).size == (32, 32)


def test_a_stream_brings_partial_pictures_and_the_whole(client: openai.OpenAI) -> None:
    with client.images.generate(
        prompt="a cat",
        size="96x96",
        stream=True,
        partial_images=2,
        extra_body={"num_inference_steps": 100},
    ) as stream:
        heard = list(stream)
    assert [event.type for event in heard][-1] == "image_generation.completed"
    partial = [e for e in heard if e.type == "image_generation.partial_image"]
    assert [e.partial_image_index for e in partial] == list(range(len(partial)))
    assert 1 <= len(partial) <= 2
    assert {opened(event.b64_json).size for event in heard} == {(96, 96)}


def test_edits_change_where_the_mask_is_transparent(client: openai.OpenAI) -> None:
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (16, 0, 32, 32))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    answer = client.images.edit(image=png(), mask=buffer.getvalue(), prompt="a cat", extra_body=OWN)
    assert answer.data is not None
    drawn = opened(answer.data[0].b64_json).convert("RGB")
    whole = Image.new("RGB", (32, 32), "orange")
    assert drawn.crop((0, 0, 16, 32)).tobytes() == whole.crop((0, 0, 16, 32)).tobytes()
    assert drawn.tobytes() != whole.tobytes()


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_variations_begin_from_the_picture(client: openai.OpenAI) -> None:
    kept = client.images.create_variation(image=png(), n=1, extra_body=OWN | {"strength": 0})
    moved = client.images.create_variation(image=png(), n=1, extra_body=OWN | {"strength": 0.9})
    assert kept.data is not None and moved.data is not None
    assert opened(kept.data[0].b64_json).tobytes() != opened(moved.data[0].b64_json).tobytes()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"size": "33x32"}, "multiples"),
        ({"size": "big"}, "size must be"),
        ({"n": 100}, "at most 8"),
        ({"extra_body": {"stepz": 3}}, "stepz"),
        ({"model": "dall-e-3"}, "this server has small"),
        ({"background": "transparent"}, "background"),
        ({"prompt": "a war"}, "no wars"),
    ],
)
def test_refusals_reach_the_client_as_its_own_errors(
    client: openai.OpenAI, wanted: dict[str, object], told: str
) -> None:
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError), match=told):
        client.images.generate(**{"prompt": "a cat", **wanted})  # type: ignore[call-overload]


def test_forms_are_read_strictly(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="transparent where"):
        client.images.edit(image=png(), mask=png(), prompt="a cat")
    with pytest.raises(openai.BadRequestError, match="must be PNG"):
        client.images.edit(image=b"GIF89a", prompt="a cat")
    with pytest.raises(openai.BadRequestError, match="one picture"):
        client.images.edit(image=[png(), png()], prompt="a cat")


def test_a_wrong_key_is_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match="wants a key"):
        client.with_options(api_key="ps-wrong").models.list()
