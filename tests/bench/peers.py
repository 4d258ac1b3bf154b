"""The servers that are compared: each started with the same sizes, and stopped by its id.

A `Side` can serve a model with a setup: `Lmlite` and `LlamaServer` start a process for it,
`Remote` is a server that runs already, and so can serve one setup alone.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lmlite.cli import flags
from tests import REPOSITORY
from tests.bench import model
from tests.bench.client import BadReply, Connection

READY_S = 120.0  # from the start of a process to the first request that it takes
STOP_S = 30.0
POLL_S = 0.005


class NotMeasured(Exception):
    """Why a scenario cannot be run with a server, as the end of a sentence."""


@dataclass(frozen=True)
class Setup:
    """What is served, and how much memory it gets; threads are the same everywhere."""

    model_path: Path  # a folder: its models, each loaded when it is asked for
    n_ctx: int = 16384
    n_parallel: int = 8
    embeds: bool = False
    needs_start: bool = False  # whether the start itself is what is measured
    cache_folder: Path | None = None  # where lmlite keeps prompts that outlive it
    mmproj_path: Path | None = None  # with which the model sees
    memory: str | None = None  # most that lmlite's models may take together


@dataclass(frozen=True)
class Server:
    """One that answers."""

    url: str
    model: str  # its name for the model
    pid: int | None = None
    began_s: float = 0.0  # perf_counter, just before the process was started


class Side(Protocol):
    """One of the two that are compared."""

    name: str

    def serve(self, setup: Setup) -> AbstractContextManager[Server]:
        """A server with that setup, while the block runs. Raises NotMeasured."""


class Lmlite:
    """The server of this repository, or of one file."""

    def __init__(self, n_threads: int | None, log_folder: Path, file: Path | None = None) -> None:
        """Without a number it has one for each core, and adapts it to what else is running."""
        self.name = file.name if file else "lmlite"
        self._program = [str(file.resolve())] if file else ["-m", "lmlite"]
        self._n_threads, self._log_folder = n_threads, log_folder

    @contextmanager
    def serve(self, setup: Setup) -> Iterator[Server]:
        port = free_port()
        models = ["--models"] if setup.model_path.is_dir() else []
        command = [
            sys.executable, *self._program, "serve", *models, str(setup.model_path),
            "--port", str(port), "--ctx", str(setup.n_ctx), "--parallel", str(setup.n_parallel),
        ]  # fmt: skip
        if self._n_threads is not None:
            command += ["--threads", str(self._n_threads)]
        if setup.cache_folder is not None:
            command += ["--cache-dir", str(setup.cache_folder)]
        if setup.memory is not None:
            command += ["--memory", setup.memory]
        if setup.mmproj_path is not None:
            command += ["--mmproj", str(setup.mmproj_path)]
        with running(command, port, self._log_folder / f"{self.name}.log") as server:
            yield server


def keeps_prompts() -> bool:
    """Whether lmlite has the flag for prompts that outlive a restart."""
    return any(flag.name == "--cache-dir" for flag in flags.SERVE_FLAGS)


class LlamaServer:
    """llama.cpp's own server, with its defaults for all but the sizes.

    So it has its prompt cache: each slot starts from what it held before, the slot is chosen by
    the longest common beginning, and idle slots are kept in up to 8 GiB outside the context
    (--cache-ram). With a number of slots given, each has its own share of the context.
    """

    name = "llama-server"

    def __init__(self, binary: Path, n_threads: int, log_folder: Path) -> None:
        self._binary, self._n_threads, self._log_folder = binary, n_threads, log_folder

    @contextmanager
    def serve(self, setup: Setup) -> Iterator[Server]:
        if setup.model_path.is_dir():
            raise NotMeasured("only lmlite's own loads are measured")
        port = free_port()
        command = [
            str(self._binary), "-m", str(setup.model_path), "--port", str(port),
            "-c", str(setup.n_ctx), "-np", str(setup.n_parallel), "-t", str(self._n_threads),
        ]  # fmt: skip
        if setup.embeds:
            command.append("--embeddings")
        if setup.mmproj_path is not None:
            command += ["--mmproj", str(setup.mmproj_path)]
        with running(command, port, self._log_folder / "llama-server.log") as server:
            yield server


class Remote:
    """A server that somebody else started, with the model file of this benchmark."""

    def __init__(self, url: str, model_name: str | None) -> None:
        self.name = url.removeprefix("http://").removesuffix("/").removesuffix("/v1")
        self._url = f"http://{self.name}"
        self._model = model_name or model_served(self._url)

    @contextmanager
    def serve(self, setup: Setup) -> Iterator[Server]:
        if setup.needs_start:
            raise NotMeasured("it needs to start the server")
        if setup.model_path != model.MODEL_PATH or setup.mmproj_path is not None:
            raise NotMeasured("it needs another model")
        yield Server(self._url, self._model)


def model_served(url: str) -> str:
    """The name of the first model that a server lists."""
    with Connection(url) as connection:
        return str(json.loads(connection.fetch("GET", "/v1/models"))["data"][0]["id"])


# ---- processes -----------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on. Both servers are told one, so that both start alike."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, log_path: Path) -> Iterator[Server]:
    """The process, once it says that it is ready; it is ended when the block is left."""
    # Where somebody has told Python to keep no compiled modules, it would compile at each start.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with log_path.open("wb") as log:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(process, url, log_path)
            yield Server(url, model_served(url), process.pid, began_s)
        finally:
            stop(process)


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log_path: Path) -> None:
    """Asks for /health until it answers 200, which both servers do when the model is loaded."""
    deadline_s = time.perf_counter() + READY_S
    while time.perf_counter() < deadline_s:
        if process.poll() is not None:
            break
        try:
            with Connection(url) as connection:
                connection.fetch("GET", "/health")
                return
        except (OSError, BadReply):
            time.sleep(POLL_S)
    tail = log_path.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{process.args!r} did not get ready:\n{tail}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Asks the process to end, and sees to it that it has."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


# ---- the rest of the machine ---------------------------------------------------------------


class Others:
    """What processes other than ours, and ours' children, take of the machine meanwhile."""

    def __enter__(self) -> "Others":
        self._began = time.perf_counter(), busy_s(Path("/proc/stat").read_text()), _own_s()
        return self

    def __exit__(self, *_: object) -> None:
        wall_s, machine_s, own_s = (
            end - begin
            for end, begin in zip(
                (time.perf_counter(), busy_s(Path("/proc/stat").read_text()), _own_s()),
                self._began,
                strict=True,
            )
        )
        self.n_cores = max(0.0, (machine_s - own_s) / wall_s)


def busy_s(stat: str) -> float:
    """Seconds that all processors have worked, by the text of /proc/stat; stolen ones count."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Of this process and of all that it has started and that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


# ---- memory --------------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    pids = [pid]
    for parent in pids:  # grows meanwhile
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += map(int, path.read_text().split())
    return pids


def n_bytes_held(pid: int, kind: str = "Pss") -> int:
    """Memory of a process and its children, by a line of smaps_rollup.

    Pss: all pages; what several map counts once. Anonymous: their own pages, which no file backs.
    """
    n = 0
    for member in tree(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        n += sum(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{kind}:"))
    return n


class MemoryWatch:
    """The most memory that a process tree holds while the block runs, looked at now and then."""

    INTERVAL_S = 0.2  # a look walks the page tables of a gigabyte: some milliseconds

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, n_bytes_held(self._pid))

    def _look(self) -> None:
        while not self._done.wait(self.INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, n_bytes_held(self._pid))


def n_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
