"""The one file as a program: it needs no environment, no folder of its own, and no second try."""

import ast
import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lmlite
from native import pack
from tests import REPOSITORY
from tests.pyz.one_file import make, make_whole, run
from tests.served.test_faults import until
from tests.support.server_process import RunningServer

PYTHON = sys.executable
VERSION = f"lmlite {lmlite.__version__}\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file with its models, and with the libraries that the tests use."""
    return make_whole(tmp_path_factory.mktemp("whole") / "lmlite.pyz")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file with the package, without models, and with a library that is none."""
    package = dict(pack.package_files(with_models=False))
    return make(tmp_path_factory.mktemp("small") / "lmlite.pyz", package, {"lmlite/lib/a.so": b"a"})


def contents(folder: Path) -> dict[Path, int]:
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_serves_from_an_empty_folder_and_leaves_nothing_but_its_cache(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copy(whole, tmp_path / "lmlite.pyz")
    bare = ("env", "-i", f"HOME={tmp_path}", PYTHON, "lmlite.pyz")
    written = []
    for _ in range(2):
        with RunningServer(folder=tmp_path, program=bare) as server:
            assert server.model == "tiny"
            says = server.chat("Say hello world")["choices"][0]["message"]["content"]
            assert says == "hello world"
            killed = server.worker_pid()
            os.kill(killed, signal.SIGKILL)
            until(lambda: server.worker_pids() not in ([], [killed]))  # noqa: B023
            assert server.chat("Say hello world")["choices"][0]["message"]["content"] == says
            assert server.stop() == 0
        written.append(contents(tmp_path / ".cache"))
    assert written[0] == written[1]  # the second start has unpacked and compiled nothing
    assert set(os.listdir(tmp_path)) == {"lmlite.pyz", ".cache"}
    assert os.listdir(tmp_path / ".cache") == ["lmlite"]


@pytest.mark.parametrize(
    "command",
    [
        [PYTHON, "{file}"],
        [PYTHON, "lmlite.pyz"],
        [PYTHON, "./linked"],
        [PYTHON, "-I", "lmlite.pyz"],
        [PYTHON, "-E", "-s", "-P", "lmlite.pyz"],
        [PYTHON, "-S", "lmlite.pyz"],
        [PYTHON, "-OO", "-B", "lmlite.pyz"],
        [PYTHON, "-m", "lmlite"],
        ["./lmlite.pyz"],
        ["lmlite.pyz"],
    ],
    ids=" ".join,
)
def test_it_may_be_named_in_any_way(small: Path, tmp_path: Path, command: list[str]) -> None:
    (small.parent / "linked").unlink(missing_ok=True)
    (small.parent / "linked").symlink_to(small)
    environment = {"HOME": tmp_path, "PYTHONPATH": small}
    environment["PATH"] = Path(f"{Path(PYTHON).parent}:{small.parent}:/usr/bin:/bin")
    words = [word.format(file=small) for word in command]
    ran = [run(*words, "--version", folder=small.parent, **environment) for _ in range(2)]
    assert [(done.stdout, done.stderr) for done in ran] == [(VERSION, "")] * 2
    assert len(os.listdir(tmp_path / ".cache" / "lmlite")) == 1


def test_a_file_without_a_model_asks_for_one(small: Path, tmp_path: Path) -> None:
    """Also, `lmlite serve` runs Python once more, here from a relative path."""
    done = run(PYTHON, small.name, "serve", folder=small.parent, HOME=tmp_path)
    sentence = "lmlite: name a model file: this lmlite has none of its own\n"
    assert (done.returncode, done.stderr) == (2, sentence)


def test_starts_at_the_same_time_unpack_one_folder(small: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run, PYTHON, small, "--version", HOME=tmp_path) for _ in range(6)]
    assert [(done.result().stdout, done.result().stderr) for done in runs] == [(VERSION, "")] * 6
    assert len(os.listdir(tmp_path / ".cache" / "lmlite")) == 1


def test_a_folder_that_cannot_be_written_is_passed_over(small: Path, tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = run(PYTHON, small, "--version", HOME=tmp_path, TMPDIR=temporary)
    assert done.stdout == VERSION
    assert os.listdir(temporary) == [f"lmlite-{os.geteuid()}"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(small: Path, tmp_path: Path, closed: str) -> None:
    start = f'exec "$@" {closed}'
    runs = [
        run("sh", "-c", start, "sh", PYTHON, small, "--version", HOME=tmp_path) for _ in range(2)
    ]
    assert [done.returncode for done in runs] == [0, 0]


def test_what_cannot_be_unpacked_is_one_sentence(small: Path, tmp_path: Path) -> None:
    data = bytearray(small.read_bytes())
    begin = data.index(b"lmlite/cli/command.py")  # the entry's own head comes before the directory
    data[begin + 200] ^= 0xFF
    damaged = tmp_path / "damaged.pyz"
    damaged.write_bytes(data)
    done = run(PYTHON, damaged, "--version", HOME=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"lmlite: {damaged} is damaged: copy it again\n"


def test_a_python_without_a_needed_module_is_told_which(small: Path, tmp_path: Path) -> None:
    """As Debian's python3-minimal."""
    check = "import runpy, sys; sys.modules['_ctypes'] = None; runpy.run_path(sys.argv.pop(1))"
    done = run(PYTHON, "-c", check, small, "--version", HOME=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "lmlite: needs Python's whole standard library, and there is no module _ctypes "
        "(Debian, Ubuntu: apt install python3)\n",
    )


def test_a_python_that_is_too_old_is_told_so(tmp_path: Path) -> None:
    start = REPOSITORY / "native" / "start.py"
    ast.parse(start.read_text(), feature_version=(3, 4))
    check = f"import sys; sys.version_info = (3, 9, 2); exec(open({str(start)!r}).read())"
    done = run(PYTHON, "-c", check, folder=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "lmlite: needs Python 3.11 or newer; this is 3.9\n",
    )


def test_a_program_starts_a_server_from_the_file(whole: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import lmlite\n"
        "with lmlite.start(log_level='error') as server: print(server.url)\n"
    )
    done = run(PYTHON, "-c", program, whole, folder=tmp_path, HOME=tmp_path)
    assert done.stdout.startswith("http://127.0.0.1:"), done.stderr
