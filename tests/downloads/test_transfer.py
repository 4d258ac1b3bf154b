"""One file over HTTP: what is continued, what begins anew, what is refused, and what is left."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmlite.downloads.fetch import fetch_model
from lmlite.downloads.part import Part
from lmlite.downloads.progress import DownloadError
from tests.downloads.conftest import Fetch, model, names_in, parts
from tests.support.fake_hub import COMMIT, FakeHub, Fault
from tests.support.house import until

NAME = "m-Q4_K_M.gguf"
CUT = Fault(cut_after=100_000)
ALL_REFUSED = [("store", Fault(status=503)) for _ in range(4)]


@pytest.fixture(autouse=True)
def repository(hub: FakeHub) -> None:
    hub.files["a/b"] = {NAME: model()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a" / "b" / NAME


@pytest.fixture
def address(hub: FakeHub) -> str:
    """A file on a server that is not the endpoint: its hash is not known."""
    return f"{hub.store_url}/a/b/resolve/main/{NAME}"


def ranges(hub: FakeHub) -> list[str | None]:
    """The ranges that the store was asked for."""
    return [asked.headers.get("Range") for asked in hub.asked_for("store")]


def leave_a_part(hub: FakeHub, fetch: Fetch, name: str, *asked_before: Any) -> None:
    """An attempt that ends after 100,000 bytes; the next one finds a server without faults."""
    hub.faults = [*asked_before, ("store", CUT), *ALL_REFUSED]
    with pytest.raises(DownloadError, match=r"127.0.0.1 fails \(status 503\); try it again later"):
        fetch(name)
    hub.faults.clear()
    hub.asked.clear()


# ---- connections that end ------------------------------------------------------------------


def test_a_connection_that_is_cut_is_continued(
    hub: FakeHub, fetch: Fetch, path: Path, notes: list[str]
) -> None:
    hub.faults = [("store", CUT)]
    fetch("a/b")
    assert path.read_bytes() == model()
    assert ranges(hub) == [None, "bytes=100000-"]
    assert notes == ["the connection was cut; trying again in 0 s"]


def test_it_may_be_cut_often_while_it_grows(hub: FakeHub, fetch: Fetch, path: Path) -> None:
    hub.faults = [("store", Fault(cut_after=n)) for n in [0, 0, 30_000] * 10]
    fetch("a/b")
    assert path.read_bytes() == model()


def test_a_connection_that_is_cut_at_the_same_byte_again_and_again_ends_it(
    hub: FakeHub, fetch: Fetch, path: Path
) -> None:
    hub.faults = [("store", CUT), *[("store", Fault(cut_after=0))] * 3]
    with pytest.raises(DownloadError, match="the connection was cut; try it again later"):
        fetch("a/b")
    assert names_in(path.parent) == [f".{NAME}.part", f".{NAME}.version"]


def test_the_next_attempt_continues(hub: FakeHub, fetch: Fetch, path: Path) -> None:
    leave_a_part(hub, fetch, "a/b")
    assert path.with_name(f".{NAME}.part").read_bytes() == model()[:100_000]
    fetch("a/b")
    assert ranges(hub) == ["bytes=100000-"]
    assert path.read_bytes() == model()
    assert names_in(path.parent) == [NAME]


def test_what_is_complete_but_has_no_name_yet_is_only_checked(
    hub: FakeHub, fetch: Fetch, path: Path
) -> None:
    leave_a_part(hub, fetch, "a/b")
    path.with_name(f".{NAME}.part").write_bytes(model())
    fetch("a/b")
    assert (ranges(hub), path.read_bytes()) == ([], model())


def test_what_is_there_is_not_fetched_again(hub: FakeHub, fetch: Fetch, path: Path) -> None:
    fetch("a/b")
    hub.asked.clear()
    assert fetch("a/b") == [path]
    assert ranges(hub) == []


def test_a_body_in_chunks_that_is_cut_is_continued(
    hub: FakeHub, fetch: Fetch, path: Path, notes: list[str]
) -> None:
    chunks = Fault(200, {"Transfer-Encoding": "chunked"}, b"ff\r\nGGUF...", cut_after=8)
    hub.faults = [("store", chunks)]
    fetch("a/b")
    assert path.read_bytes() == model()
    assert notes == ["the connection was cut; trying again in 0 s"]


# ---- content that changes ------------------------------------------------------------------


def test_new_content_in_the_repository_begins_anew(hub: FakeHub, fetch: Fetch, path: Path) -> None:
    leave_a_part(hub, fetch, "a/b")
    hub.files["a/b"][NAME] = model(1)
    fetch("a/b")
    assert (ranges(hub), path.read_bytes()) == ([None], model(1))


def test_a_file_by_its_address_continues_while_its_etag_is_the_same(
    hub: FakeHub, fetch: Fetch, address: str
) -> None:
    leave_a_part(hub, fetch, address, ("store", Fault()))
    (path,) = fetch(address)
    assert (ranges(hub), path.read_bytes()) == (["bytes=0-0", "bytes=100000-"], model())
    assert hub.asked[1].headers["If-Range"].startswith('"')


def test_another_etag_begins_anew(hub: FakeHub, fetch: Fetch, address: str) -> None:
    leave_a_part(hub, fetch, address, ("store", Fault()))
    hub.files["a/b"][NAME] = model(1)
    (path,) = fetch(address)
    assert (ranges(hub), path.read_bytes()) == (["bytes=0-0", None], model(1))


def test_another_etag_in_the_middle_ends_it(hub: FakeHub, fetch: Fetch, address: str) -> None:
    hub.faults = [("store", Fault()), ("store", CUT), ("store", Fault(body=model(1)))]
    with pytest.raises(DownloadError, match=f"{NAME} has changed meanwhile; fetch it again"):
        fetch(address)


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_without_a_strong_etag_nothing_is_continued(
    hub: FakeHub, fetch: Fetch, address: str, etag: str
) -> None:
    fault = ("store", Fault(etag=etag))
    leave_a_part(hub, fetch, address, fault)
    hub.faults = [fault]
    (path,) = fetch(address)
    assert (ranges(hub), path.read_bytes()) == (["bytes=0-0", None], model())


def test_a_server_without_ranges_sends_all_of_it_again(
    hub: FakeHub, fetch: Fetch, path: Path
) -> None:
    hub.faults = [("store", CUT), ("store", Fault(ignores_ranges=True))]
    fetch("a/b")
    assert path.read_bytes() == model()
    assert ranges(hub) == [None, "bytes=100000-"]


# ---- wrong content -------------------------------------------------------------------------

WRONG = b"x" * len(model())


@pytest.mark.parametrize("body", [WRONG, model() + b"x"], ids=["hash", "longer"])
def test_wrong_content_leaves_nothing(hub: FakeHub, fetch: Fetch, path: Path, body: bytes) -> None:
    hub.faults = [("store", Fault(body=body))]
    with pytest.raises(DownloadError) as caught:
        fetch("a/b")
    assert str(caught.value) == (
        f"{NAME} did not arrive as it was sent (its size or SHA-256 is wrong); "
        "nothing of it was kept, fetch it again"
    )
    assert names_in(path.parent) == []


def test_a_part_that_was_damaged_on_disk_leaves_nothing(
    hub: FakeHub, fetch: Fetch, path: Path
) -> None:
    leave_a_part(hub, fetch, "a/b")
    path.with_name(f".{NAME}.part").write_bytes(WRONG[:100_000])
    with pytest.raises(DownloadError, match="its size or SHA-256 is wrong"):
        fetch("a/b")
    assert names_in(path.parent) == []


def test_a_file_that_has_become_shorter_is_told(hub: FakeHub, fetch: Fetch, path: Path) -> None:
    leave_a_part(hub, fetch, "a/b")
    hub.faults = [("store", Fault(body=model()[:200_000]))]
    with pytest.raises(DownloadError, match=f"{NAME} has another size than announced"):
        fetch("a/b")
    assert names_in(path.parent) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<!doctype html>" * 99, "it is a web page, not a GGUF file"),
        (model()[:300_000], "it "),
    ],
    ids=["page", "cut"],
)
def test_what_is_no_model_leaves_nothing(
    hub: FakeHub, fetch: Fetch, path: Path, body: bytes, message: str
) -> None:
    hub.files["a/b"][NAME] = body
    with pytest.raises(DownloadError) as caught:
        fetch("a/b")
    assert str(caught.value).startswith(f"{NAME} cannot be loaded: {message}")
    assert str(caught.value).endswith("; nothing of it was kept")
    assert names_in(path.parent) == []


def test_a_server_that_hides_the_size_is_told(hub: FakeHub, fetch: Fetch, address: str) -> None:
    hub.faults = [("store", Fault(206, {"Content-Range": "bytes 0-0/*"}, b"G"))]
    with pytest.raises(DownloadError, match=f"127.0.0.1 does not say how large {NAME} is"):
        fetch(address)


def test_a_hash_may_be_given_with_an_address(fetch: Fetch, address: str) -> None:
    with pytest.raises(DownloadError, match="its size or SHA-256 is wrong"):
        fetch(f"{address}#sha256={'0' * 64}")


def test_no_part_of_a_split_model_has_a_name_before_all_are_checked(
    hub: FakeHub, fetch: Fetch, path: Path
) -> None:
    hub.files["a/b"] = parts()
    hub.faults = [(f"store /a/b/resolve/{COMMIT}/big-00003", Fault(404))]
    with pytest.raises(DownloadError, match="has no big-00003-of-00003"):
        fetch("a/b")
    left = [f".big-0000{n}-of-00003.gguf.{end}" for n in (1, 2) for end in ("part", "version")]
    assert names_in(path.parent)[:4] == left
    hub.asked.clear()
    fetch("a/b")
    assert len(hub.asked_for("store")) == 1
    assert names_in(path.parent) == list(parts())


# ---- the disk ------------------------------------------------------------------------------


def test_a_full_disk_is_told_before_anything_is_fetched(
    hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_free = len(model()) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=n_free))
    with pytest.raises(DownloadError, match=r"/a/b has [\d.]* kB free, but [\d.]* kB are to"):
        fetch("a/b")
    assert ranges(hub) == []


def test_what_is_there_of_a_part_needs_no_more_room(
    hub: FakeHub, fetch: Fetch, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_a_part(hub, fetch, "a/b")
    n_free = len(model()) - 100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=n_free))
    fetch("a/b")
    assert path.read_bytes() == model()


def test_a_disk_that_fills_meanwhile_keeps_the_part(
    fetch: Fetch, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Part.write

    def full(part: Part, data: bytes) -> None:
        if part.n_bytes >= 65_536:
            raise OSError(28, "No space left on device")
        write(part, data)

    monkeypatch.setattr(Part, "write", full)
    with pytest.raises(DownloadError, match=f"cannot write to {path.parent}: No space left on"):
        fetch("a/b")
    assert path.with_name(f".{NAME}.part").stat().st_size == 65_536


def test_a_folder_that_cannot_be_made_is_told(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(DownloadError, match=f"cannot write to {tmp_path}/a/b: Not a directory"):
        fetch("a/b")


def test_another_file_of_that_name_is_never_replaced(fetch: Fetch, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=f"{path} exists and is another file; remove it first"):
        fetch("a/b")
    assert path.read_bytes() == b"mine"


# ---- several at once -----------------------------------------------------------------------


def test_the_second_of_two_attempts_waits_and_fetches_nothing(
    hub: FakeHub, tmp_path: Path, path: Path
) -> None:
    hub.faults = [("store", Fault(hold_after=100_000))]
    told: list[list[dict[str, Any]]] = [[], []]
    threads = [
        threading.Thread(target=fetch_model, args=("a/b", tmp_path, hub.url, None, events.append))
        for events in told
    ]
    threads[0].start()
    assert hub.is_held.wait(30)
    threads[1].start()
    waiting = f"another process is fetching {NAME}; waiting for it"
    until(lambda: {"event": "note", "message": waiting} in told[1])
    hub.release()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == model()
    assert [events[-1] for events in told] == [{"event": "done", "paths": [str(path)]}] * 2
    assert ranges(hub) == [None, "bytes=100000-"]
    assert names_in(path.parent) == [NAME]


def test_a_file_that_appears_meanwhile_is_kept(
    hub: FakeHub, fetch: Fetch, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_a_part(hub, fetch, "a/b")
    lock = Part.lock

    def lock_late(part: Part, note: Any) -> None:
        path.write_bytes(model(1))
        lock(part, note)

    monkeypatch.setattr(Part, "lock", lock_late)
    fetch("a/b")
    assert path.read_bytes() == model(1)


def test_the_second_continues_when_the_first_fails(hub: FakeHub, fetch: Fetch, path: Path) -> None:
    """Two attempts that take turns never leave a mixture."""
    part = Part(path, len(model()), "")
    path.parent.mkdir(parents=True)
    part.lock(print)
    part.write(WRONG)
    second = threading.Thread(target=fetch, args=("a/b",))
    second.start()
    until(lambda: bool(hub.asked_for("tree")))
    part.remove()
    part.close()
    second.join()
    assert path.read_bytes() == model()
