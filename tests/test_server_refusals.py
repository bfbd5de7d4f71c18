"""What a server's owner forbids stays forbidden by every way in, and what is over stays over."""

import time
from pathlib import Path

import gradio as gr
import pytest
from tests.serving import job, serving, small_service, until_over, wait
from tests.small import small_pipeline

from pixsigma.errors import BusyError, InputError
from pixsigma.requests import GenerationRequest, request_from
from pixsigma.server.jobs import JobStore
from pixsigma.server.keys import Keys, add_key, hashed, read_keys
from pixsigma.server.limits import Limits, Rates
from pixsigma.server.openai_api import ImagesRequest
from pixsigma.server.policy import Policy, read_rules
from pixsigma.server.service import JobRequest
from pixsigma.server.studio.widgets import details
from pixsigma.server.telling import remembered
from pixsigma.server.worker import Worker

BOX = [0.0, 0.0, 0.5, 1.0]
WHITE = "data:image/gif;base64,R0lGODlhAQABAAAAACw="


@pytest.mark.parametrize(
    ("region", "told"),
    [
        ({"prompt": "b", "mask": "/etc/passwd"}, "opens no path"),
        ({"prompt": "b", "mask": "https://example.org/a.png"}, "opens no path"),
        ({"prompt": "b", "mask": WHITE}, "must be PNG, JPEG, WEBP"),
        ({"prompt": "b" * 300, "box": BOX}, "characters of a region's prompt"),
    ],
)
def test_regions_are_held_to_the_limits(
    tmp_path: Path, region: dict[str, object], told: str
) -> None:
    service = small_service(tmp_path, limits=Limits(max_prompt=200))
    with pytest.raises(InputError, match=told):
        service.submit(JobRequest.model_validate(job(regions=[region])), "a")


def test_pictures_do_not_carry_the_masks_they_came_with() -> None:
    mask = "data:image/png;base64,AAAA"
    request = request_from(prompt="a", regions=[{"prompt": "b", "mask": mask}])
    assert [region["mask"] for region in remembered(request)["regions"]] == ["data:"]
    boxed = request_from(prompt="a", regions=[{"prompt": "b", "box": BOX}])
    assert [region["mask"] for region in remembered(boxed)["regions"]] == [None]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a Weapon"},
        {"prompt": "a", "regions": [{"prompt": "weapon", "box": BOX}]},
        {"prompt": "wea(pon:1)", "prompt_syntax": "weighted"},
        {"prompt": "w[ea|ae]pon", "prompt_syntax": "weighted"},
        {"prompt": "[a cat:we(apo:1.2)n:0.98]", "prompt_syntax": "weighted"},
    ],
)
def test_rules_read_what_is_drawn(tmp_path: Path, fields: dict[str, object]) -> None:
    (tmp_path / "rules.toml").write_text(
        '[[refuse]]\nwords = ["weapon"]\nreason = "no weapons"\n', "utf-8"
    )
    refused = read_rules(tmp_path / "rules.toml")
    assert refused(request_from(**fields)) == "no weapons"
    assert refused(GenerationRequest(prompt="w(ea:1.2)pon")) is None  # plain: drawn as it stands


def test_a_cancelled_job_is_not_drawn_after_a_restart(tmp_path: Path) -> None:
    jobs = JobStore(tmp_path / "jobs.sqlite")
    id = jobs.add({"prompt": "a"}, client="a", model="m")[0].id
    jobs.claim()
    jobs.cancel(id)
    jobs.hand_back(id)  # as a server that stops does with what still runs
    assert jobs.get(id).state == "cancelled" and jobs.claim() is None


def test_what_waits_beyond_its_deadline_fails_where_it_stands(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    worker = Worker(store, {"m": small_pipeline()}, tmp_path / "results")
    late, other, gone = (store.add({"prompt": "a"}, client="a", model="m")[0].id for _ in range(3))
    worker.deadlines |= {late: time.monotonic() - 1, other: time.monotonic() + 99, gone: 0.0}
    worker.cancel(gone)
    worker._let_go()
    assert (store.get(late).state, store.get(other).state) == ("failed", "queued")
    assert "deadline" in str(store.get(late).reason)
    assert list(worker.deadlines) == [other]


def test_a_refused_picture_keeps_its_idempotency_key(tmp_path: Path) -> None:
    service = small_service(tmp_path, policy=Policy(after=[lambda image: "too orange"]))
    service.start()
    wanted = JobRequest.model_validate(job(seed=1))
    first = service.submit(wanted, "a", idempotency_key="k")
    until_over(service, first.id)
    end = time.monotonic() + 20
    while service.store.get(first.id).request and time.monotonic() < end:
        time.sleep(0.01)
    assert service.submit(wanted, "a", idempotency_key="k").id == first.id
    service.stop()


def test_a_rate_below_one_lets_one_job_through() -> None:
    now = 0.0
    rates = Rates(0.5, clock=lambda: now)
    rates.take("a")
    with pytest.raises(BusyError) as busy:
        rates.take("a")
    assert busy.value.retry_after == pytest.approx(120)
    now = 120.0
    rates.take("a")


def test_a_file_without_keys_takes_one_and_keeps_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the shop", "utf-8")
    with pytest.raises(InputError, match="holds no key"):
        read_keys(path)
    ann, bob = add_key(path, "ann"), add_key(path, "bob")
    assert read_keys(path) == Keys({"ann": hashed(ann), "bob": hashed(bob)})
    assert path.read_text("utf-8").startswith("# of the shop\nann:")


def test_few_steps_at_most_are_the_default_too(tmp_path: Path) -> None:
    service = small_service(tmp_path, limits=Limits(max_steps=10))
    with gr.Blocks():
        assert details(service)["steps"].value == 10
    wanted = ImagesRequest(prompt="a").job({}, service.limits.max_steps)
    assert wanted.request.num_inference_steps == 10
    own = ImagesRequest.model_validate({"prompt": "a", "num_inference_steps": 30})
    with pytest.raises(InputError, match="at most 10"):
        service.submit(own.job({}, service.limits.max_steps), "a")


@pytest.mark.parametrize(
    ("fetch_site", "status"),
    [(None, 403), ("cross-site", 403), ("same-origin", 202), ("none", 202)],
)
def test_pages_without_an_origin_may_ask_only_where_the_browser_says_they_are_ours(
    tmp_path: Path, fetch_site: str | None, status: int
) -> None:
    headers = {"Origin": "null"} | ({"Sec-Fetch-Site": fetch_site} if fetch_site else {})
    with serving(tmp_path) as client:
        answer = client.post("/v1/jobs", json=job(), headers=headers)
        assert answer.status_code == status
        if status == 202:
            wait(client, answer.json()["id"])
