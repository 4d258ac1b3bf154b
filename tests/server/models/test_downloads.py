"""Downloads that a server starts: their replies, their bounds, their end."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import BadRequest, NotFound, Unavailable
from lmlite.server.models import downloads
from lmlite.server.models.downloads import Downloads
from tests.downloads.conftest import model
from tests.support.fake_hub import FakeHub, opened_hub
from tests.support.house import until
from tests.support.process_figures import children

START = {"event": "start", "total_size_bytes": 1000, "downloaded_bytes": 10}
PROGRESS = {
    "event": "progress",
    "total_size_bytes": 1000,
    "downloaded_bytes": 500,
    "bytes_per_second": 50,
    "seconds_left": 10,
}
DONE = {"event": "done", "paths": ["/m/a.gguf"]}
TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")

Open = Callable[..., Downloads]


@pytest.fixture
def telling() -> Iterator[Open]:
    """Downloads whose processes only tell some events, and then wait if `is_endless`."""
    opened = []

    def made(*events: dict[str, Any], is_endless: bool = False, code: int = 0) -> Downloads:
        lines = "".join(json.dumps(event) + "\n" for event in events)
        end = "import time; time.sleep(600)" if is_endless else f"raise SystemExit({code})"
        program = f"print({lines!r}, end='', flush=True); {end}"
        opened.append(Downloads(Path("/m"), [sys.executable, "-c", program]))
        return opened[-1]

    yield made
    for each in opened:
        each.close()


def ended(made: Downloads, job_id: str) -> dict[str, Any]:
    """The status of a job once it has ended."""
    until(lambda: made.status(job_id)["status"] != "downloading")
    return made.status(job_id)


def test_a_job_has_the_fields_of_lm_studio(telling: Open) -> None:
    made = telling(START, PROGRESS, is_endless=True)
    reply = made.start("a/b", None)
    assert reply.keys() == {"job_id", "status", "total_size_bytes", "started_at"}
    assert (reply["status"], reply["total_size_bytes"]) == ("downloading", 1000)
    until(lambda: "bytes_per_second" in made.status(reply["job_id"]))
    status = made.status(reply["job_id"])
    assert status.pop("estimated_completion") > status["started_at"]
    assert TIME.fullmatch(status["started_at"])
    assert status == reply | {"downloaded_bytes": 500, "bytes_per_second": 50}


def test_an_ended_job_has_no_speed(telling: Open) -> None:
    made = telling(START, PROGRESS | {"downloaded_bytes": 1000}, DONE)
    job_id = made.start("a/b", "Q8_0")["job_id"]
    status = ended(made, job_id)
    assert TIME.fullmatch(status.pop("completed_at"))
    assert TIME.fullmatch(status.pop("started_at"))
    assert status == {
        "job_id": job_id,
        "status": "completed",
        "total_size_bytes": 1000,
        "downloaded_bytes": 1000,
    }


def test_what_is_there_already_is_told_as_such(telling: Open) -> None:
    made = telling(START | {"total_size_bytes": 0}, DONE)
    assert made.start("a/b", None) == {"status": "already_downloaded"}


def test_what_cannot_be_found_is_an_error_at_once(telling: Open) -> None:
    made = telling({"event": "error", "message": "h has no a/b"}, code=1)
    with pytest.raises(BadRequest, match="h has no a/b") as caught:
        made.start("a/b", None)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{"event": "error", "message": "the disk is full"}], "the disk is full"),
        ([], "its process ended with code 3"),
    ],
)
def test_a_job_that_fails_later_says_why(
    telling: Open, events: list[dict[str, Any]], message: str
) -> None:
    made = telling(START, *events, code=3)
    status = ended(made, made.start("a/b", None)["job_id"])
    assert (status["status"], status["error"]) == ("failed", message)


def test_a_model_that_is_being_fetched_is_the_same_job(telling: Open) -> None:
    made = telling(START, is_endless=True)
    first = made.start("a/b", "Q8_0")
    assert made.start("a/b", "Q8_0") == first
    assert made.start("a/b", "Q4_0")["job_id"] != first["job_id"]


def test_only_a_few_run_at_once(telling: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_RUNNING", 2)
    made = telling(START, is_endless=True)
    made.start("a/b", None)
    made.start("a/c", None)
    with pytest.raises(Unavailable, match="2 downloads are running; try again later"):
        made.start("a/d", None)


def test_only_the_newest_jobs_are_kept(telling: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_KEPT", 2)
    made = telling(START, DONE)
    jobs = []
    for number in range(3):
        jobs.append(made.start(f"a/{number}", None)["job_id"])
        ended(made, jobs[-1])
    with pytest.raises(NotFound, match=f"there is no download '{jobs[0]}'"):
        made.status(jobs[0])
    assert [made.status(job)["status"] for job in jobs[1:]] == ["completed"] * 2


def test_the_end_of_the_server_ends_them(telling: Open) -> None:
    before = children(os.getpid())
    made = telling(START, is_endless=True)
    job_id = made.start("a/b", None)["job_id"]
    assert children(os.getpid()) != before
    made.close()
    assert children(os.getpid()) == before
    assert made.status(job_id)["status"] == "failed"
    with pytest.raises(Unavailable):
        made.start("a/b", None)


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/a/b",
        "http://127.0.0.1:22/x.gguf",
        "https://huggingface.co.evil.example/a/b",
        "file:///etc/x",
    ],
)
def test_clients_choose_no_other_host(telling: Open, address: str) -> None:
    with pytest.raises(BadRequest, match=r"only models of https://huggingface\.co are fetched"):
        telling(START).start(address, None)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_process_can_get_is_refused(telling: Open, name: str) -> None:
    with pytest.raises(BadRequest, match="this is no name of a model"):
        telling(START).start(name, None)


# ---- the real process ----------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with opened_hub() as hub:
        hub.files["a/b"] = {"m-Q8_0.gguf": model()}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("LMLITE_API_KEY", "secret")
        yield hub


def test_a_model_is_fetched_by_lmlite_get(hub: FakeHub, tmp_path: Path) -> None:
    made = Downloads(tmp_path)
    job = made.start(f"{hub.url}/a/b", "q8_0")
    status = ended(made, job["job_id"])
    assert (status["status"], status["downloaded_bytes"]) == ("completed", len(model()))
    assert (tmp_path / "a/b/m-Q8_0.gguf").read_bytes() == model()
    assert hub.asked[0].headers["Authorization"] == "Bearer hf_secret"
    assert made.start("a/b", None) == {"status": "already_downloaded"}


def test_a_name_is_never_taken_for_a_flag(hub: FakeHub, tmp_path: Path) -> None:
    assert hub
    with pytest.raises(BadRequest, match="'--help' is not a model to fetch"):
        Downloads(tmp_path).start("--help", None)


def test_the_process_gets_only_the_variables_that_it_needs(hub: FakeHub) -> None:
    assert hub
    given = downloads._environment()
    assert (given["HF_TOKEN"], given["HF_ENDPOINT"]) == ("hf_secret", hub.url)
    assert "LMLITE_API_KEY" not in given
