"""The cache folder of the one file: where it lies, what is checked, what is written again."""

import fcntl
import importlib.util
import marshal
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from zipimport import zipimporter

import pytest

from lmlite import one_file, unpacking
from lmlite.__main__ import unpacked
from lmlite.one_file import UnpackError
from tests.pyz.one_file import make

REAL_PLACES = one_file.places
OTHER_USER = 65534
PACKAGE = {"lmlite/big.md": bytes(range(256)) * 9000, "lmlite/code.py": b"value = 1\n"}
LIBRARIES = {"lmlite/lib/liba.so": b"a" * 100_000, "lmlite/lib/libb.so": b"b" * 3_000_000}
CONTENTS = PACKAGE | LIBRARIES


@pytest.fixture
def archive(tmp_path: Path) -> zipimporter:
    return zipimporter(str(make(tmp_path / "one.pyz", PACKAGE, LIBRARIES)))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The best place, and the only one."""
    place = tmp_path / "cache" / "lmlite"
    put(monkeypatch, place)
    return place


def put(monkeypatch: pytest.MonkeyPatch, *places: Path) -> None:
    """Makes these the places."""
    monkeypatch.setattr(one_file, "places", lambda: map(str, places))
    monkeypatch.setattr(unpacking, "places", lambda: map(str, places))


def start(archive: zipimporter) -> Path:
    """Unpacks, and checks every file against what was packed."""
    folder = Path(unpacked(archive))
    for path, content in CONTENTS.items():
        assert (folder / path).read_bytes() == content
    code = Path(importlib.util.cache_from_source(str(folder / "lmlite/code.py"))).read_bytes()
    space: dict[str, object] = {}
    exec(marshal.loads(code[16:]), space)
    assert space["value"] == 1
    assert not [name for name in os.listdir(folder.parent) if name.startswith("new-")]
    return folder


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """What changes if any file is written."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def refusal(archive: zipimporter) -> str:
    with pytest.raises(UnpackError) as raised:
        unpacked(archive)
    return str(raised.value)


# ---- starts --------------------------------------------------------------------------------


def test_a_second_start_writes_nothing(archive: zipimporter) -> None:
    folder = start(archive)
    before = state(folder)
    assert len(before) == len(CONTENTS) + 1  # the compiled code
    assert start(archive) == folder
    assert state(folder) == before


def test_only_the_user_can_read_the_folder(archive: zipimporter, place: Path) -> None:
    folder = start(archive)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, folder)] == [0o700, 0o700]


def test_python_runs_the_compiled_code(archive: zipimporter) -> None:
    """So nothing is compiled at the second start."""
    folder = start(archive)
    check = "import lmlite.code, sys; print(lmlite.code.__cached__, lmlite.code.value)"
    done = subprocess.run([sys.executable, "-v", "-c", check], cwd=folder, capture_output=True)
    cached = importlib.util.cache_from_source(str(folder / "lmlite/code.py"))
    assert done.stdout.decode().split() == [cached, "1"]
    assert f"code object from '{cached}'" in done.stderr.decode()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _zero(path: Path) -> None:
    """What a loss of power may leave: the size, but not the content."""
    path.write_bytes(bytes(path.stat().st_size))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("name", [*CONTENTS, "bytecode"])
@pytest.mark.parametrize("harm", [_cut, _empty, _zero, _flip, _lengthen, Path.unlink])
def test_what_is_damaged_is_written_again_and_nothing_else(
    archive: zipimporter, name: str, harm: Callable[[Path], None]
) -> None:
    folder = start(archive)
    before = state(folder)
    cached = Path(importlib.util.cache_from_source(str(folder / "lmlite/code.py")))
    path = cached if name == "bytecode" else folder / name
    harm(path)
    assert start(archive) == folder
    after = state(folder)
    written = {path for path in after if after[path] != before[path]}
    with_code = {folder / "lmlite/code.py", cached}
    assert written == (with_code if path in with_code else {path})


def test_code_compiled_from_another_source_is_not_used(archive: zipimporter) -> None:
    folder = start(archive)
    path = Path(importlib.util.cache_from_source(str(folder / "lmlite/code.py")))
    code = marshal.dumps(compile("value = 2", "code.py", "exec"))
    head = path.read_bytes()[:8]
    checksums = struct.pack("<II", zlib.crc32(b"value = 2"), zlib.crc32(code))
    path.write_bytes(head + checksums + code)
    start(archive)


def test_a_file_that_cannot_be_read_is_written_again(archive: zipimporter) -> None:
    folder = start(archive)
    path = folder / "lmlite/lib/liba.so"
    path.unlink()
    path.symlink_to("nowhere")
    start(archive)


# ---- places that cannot be used -----------------------------------------------------------


@pytest.fixture
def second(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place after the best one."""
    second = tmp_path / "second" / "lmlite"
    put(monkeypatch, place, second)
    return second


def _file(place: Path) -> None:
    place.write_text("")


def _open_folder(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def _folder_of_a_group(place: Path) -> None:
    place.mkdir()
    place.chmod(0o770)


def _open_parent(place: Path) -> None:
    place.mkdir()
    place.parent.chmod(0o777)


def _dangling_link(place: Path) -> None:
    place.symlink_to("nowhere")


def _foreign_folder(place: Path) -> None:
    place.mkdir(mode=0o700)
    os.chown(place, OTHER_USER, OTHER_USER)


def _foreign_link(place: Path) -> None:
    own = place.with_name("own")
    own.mkdir(mode=0o700)
    place.symlink_to(own)
    os.chown(place, OTHER_USER, OTHER_USER, follow_symlinks=False)


FAULTS: dict[Callable[[Path], None], str] = {
    _file: "File exists",
    _open_folder: "others may write to it",
    _folder_of_a_group: "others may write to it",
    _open_parent: "others may replace it",
    _dangling_link: "File exists",
    _foreign_folder: "belongs to another user",
    _foreign_link: "belongs to another user",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_place_that_somebody_else_can_change_is_not_used(
    archive: zipimporter, place: Path, second: Path, spoil: Callable[[Path], None]
) -> None:
    if os.geteuid() != 0 and spoil in (_foreign_folder, _foreign_link):
        pytest.skip("only root can give files away")
    place.parent.mkdir()
    spoil(place)
    assert start(archive).parent == second
    shutil.rmtree(second)
    second.write_text("")
    assert refusal(archive) == (
        "nothing can be unpacked: set LMLITE_CACHE to a folder that can be written and is not "
        f"mounted noexec ({place}: {FAULTS[spoil]}; {second}: File exists)"
    )


def test_what_was_unpacked_is_not_used_once_others_can_change_it(
    archive: zipimporter, place: Path, second: Path
) -> None:
    assert start(archive).parent == place
    place.chmod(0o777)
    assert start(archive).parent == second


def test_a_users_own_link_is_followed(archive: zipimporter, place: Path) -> None:
    """systemd makes one for a service with a dynamic user."""
    own = place.parent / "private"
    own.mkdir(parents=True, mode=0o700)
    place.symlink_to(own)
    assert start(archive).parent == place
    assert len(os.listdir(own)) == 1


def test_a_sticky_folder_may_hold_a_place(archive: zipimporter, place: Path) -> None:
    place.parent.mkdir()
    place.parent.chmod(0o1777)
    assert start(archive).parent == place


# Unpacks to the places argv[2:]; prints the folder, and what is left in the first place.
UNPACK = """
import os, sys
from zipimport import zipimporter
from lmlite import one_file, unpacking
from lmlite.__main__ import unpacked
one_file.places = unpacking.places = lambda: sys.argv[2:]
print(unpacked(zipimporter(sys.argv[1])))
print(os.listdir(sys.argv[2]) if os.path.isdir(sys.argv[2]) else [])
"""
MOUNT = ("unshare", "--mount", "--map-root-user", "sh", "-c",
         'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"')  # fmt: skip


@pytest.mark.parametrize("options", ["noexec", "ro", "size=2m", "nr_inodes=9"])
def test_the_next_place_is_used_where_files_cannot_be_run_or_written(
    archive: zipimporter, place: Path, second: Path, options: str
) -> None:
    """A disk that is full has too little room or too few inodes; nothing is left on it."""
    place.parent.mkdir()
    if subprocess.run([*MOUNT, "size=1m", place.parent, "true"]).returncode != 0:
        pytest.skip("this system lets nobody mount a folder")
    unpack = [sys.executable, "-c", UNPACK, archive.archive, str(place), str(second)]
    done = subprocess.run([*MOUNT, options, place.parent, *unpack], capture_output=True, text=True)
    folder = second / os.listdir(second)[0]
    assert (done.stdout, done.stderr) == (f"{folder}\n[]\n", "")
    assert start(archive) == folder


def test_without_any_place_one_sentence_names_the_way_out(
    archive: zipimporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch)
    assert refusal(archive) == (
        "nothing can be unpacked: set LMLITE_CACHE to a folder that can be written and is not "
        "mounted noexec ()"
    )


def test_a_place_of_root_that_is_complete_need_not_be_writable(
    archive: zipimporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image that was started once when it was made."""
    if os.geteuid() != 0:
        pytest.skip("only root can make such a place")
    folder = start(archive)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER)
    before = state(folder)
    assert start(archive) == folder
    assert state(folder) == before


# ---- what is left behind -------------------------------------------------------------------


def aged(folder: Path, seconds: float) -> Path:
    """Makes a folder that was used last this long ago."""
    folder.mkdir(parents=True)
    (folder / "file").write_text("")
    now = folder.stat().st_mtime
    os.utime(folder, (now - seconds, now - seconds))
    return folder


def test_an_interrupted_start_leaves_what_the_next_one_completes(
    archive: zipimporter, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    written: list[str] = []

    def put_two(self: unpacking.Writer, path: str, data: bytes) -> None:
        written.append(path)
        if len(written) > 2:
            raise Killed
        real(self, path, data)

    def nothing(*_: object, **__: object) -> None:
        """What a killed process cleans up."""

    real = unpacking.Writer._put
    with monkeypatch.context() as killing:
        killing.setattr(unpacking.Writer, "_put", put_two)
        killing.setattr(unpacking, "_remove", nothing)
        killing.setattr(shutil, "rmtree", nothing)
        with pytest.raises(Killed):
            unpacked(archive)
    (aside,) = place.glob("new-*")
    (folder,) = set(place.iterdir()) - {aside}
    assert len(state(folder)) == 2
    os.utime(aside, (0, 0))
    assert start(archive) == folder
    assert list(place.iterdir()) == [folder]


def test_old_leavings_and_versions_are_removed_and_young_ones_stay(
    archive: zipimporter, place: Path
) -> None:
    hour, day = 3600, 24 * 3600
    aged(place / "new-old", 2 * hour)
    aged(place / "old", 31 * day)
    stay = {aged(place / "young", 29 * day), aged(place / "new-young", hour / 2)}
    place.chmod(0o700)
    folder = Path(unpacked(archive))
    assert set(place.iterdir()) == stay | {folder}


def test_a_version_that_a_process_uses_is_not_removed(archive: zipimporter, place: Path) -> None:
    old = aged(place / "old", 31 * 24 * 3600)
    place.chmod(0o700)
    fd = os.open(old, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    folder = start(archive)
    assert set(place.iterdir()) == {old, folder}
    os.close(fd)
    (folder / "lmlite/code.py").unlink()
    start(archive)
    assert set(place.iterdir()) == {folder}


def test_a_start_counts_as_use(archive: zipimporter) -> None:
    folder = start(archive)
    os.utime(folder, (0, 0))
    start(archive)
    assert folder.stat().st_mtime > 0


# ---- the archive ---------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["lmlite/code.py", "lmlite/big.md", "lmlite/lib.xz"])
def test_a_damaged_file_is_one_sentence(archive: zipimporter, place: Path, entry: str) -> None:
    path = Path(archive.archive)
    with zipfile.ZipFile(path) as opened:
        begin = opened.getinfo(entry).header_offset + 30 + len(entry)
        middle = begin + opened.getinfo(entry).compress_size // 2
    data = bytearray(path.read_bytes())
    data[middle] ^= 0xFF
    path.write_bytes(data)
    assert refusal(archive) == f"{path} is damaged: copy it again"
    assert os.listdir(place) == []


def test_one_thread_is_enough(archive: zipimporter, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    start(archive)


# ---- where the places are ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({"HOME": "/home/me"}, "/home/me/.cache/lmlite"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "/var/cache"}, "/var/cache/lmlite"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "cache"}, "/home/me/.cache/lmlite"),
        ({"HOME": "/home/me", "LMLITE_CACHE": "/data"}, "/data/lmlite"),
        ({"HOME": "/home/me", "LMLITE_CACHE": "~/data"}, "/home/me/data/lmlite"),
        ({"HOME": "/home/me", "LMLITE_CACHE": "data"}, f"{os.getcwd()}/data/lmlite"),
    ],
)
def test_the_first_place_is_named_by_the_environment(
    variables: dict[str, str], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "LMLITE_CACHE", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert next(REAL_PLACES()) == first


def test_folders_of_all_users_come_last_and_only_if_they_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 123456)
    found = list(REAL_PLACES())
    assert found[1:3] == [f"{tmp_path}/lmlite-123456", "/tmp/lmlite-123456"]
    assert "/run/user/123456/lmlite-123456" not in found
