"""One worker's process: how it is started, its pipes, and what it died of.

The kernel ends a worker when the thread that started it ends. Knows no requests.
"""

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lmlite.server.logs import Log

STOP_WAIT_S = 2.0  # how long a worker may take to end once its input has ended
LAST_WORDS_S = 1.0  # and for its standard error to be read to the end after that
MAX_LINE_BYTES = 4096  # of standard error; a longer line counts as several

# -P: nothing is imported from the folder that the server was started in.
WORKER_COMMAND = (sys.executable, "-P", "-m", "lmlite.worker")

# What a worker may see of the environment: no keys, no secrets.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_", "TMPDIR", "LD_", "DYLD_", "PYTHON", "CUDA_", "HIP_",
              "ROCR_", "HSA_", "VK_", "GGML_", "OMP_", "GOMP_")  # fmt: skip
_WORKER_ENVIRONMENT = {
    # Threads of the library spin this often before they sleep. Its default starves a machine
    # that has anything else to do; never to spin halves the speed of an idle one.
    "GOMP_SPINCOUNT": "1000",
    # A crash is to end at once, not to start a debugger.
    "GGML_NO_BACKTRACE": "1",
}


class WorkerProcess:
    """A process that was started, until `bury`."""

    def __init__(self, command: Sequence[str], log: Log) -> None:
        """Starts it. Raises OSError, or RuntimeError without a thread to listen to it."""
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=worker_environment(),
        )
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self.requests: BinaryIO = process.stdin  # type: ignore[assignment]
        self.events: BinaryIO = process.stdout  # type: ignore[assignment]
        self._log = log
        self._verdict: str | None = None  # why it had to be killed
        self._last_words: collections.deque[str] = collections.deque(maxlen=50)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        try:
            self._listener.start()
        except BaseException:
            process.kill()
            process.communicate()
            raise

    def kill(self, why: str | None = None) -> None:
        """Ends it at once; from any thread, and harmless when it has ended."""
        self._verdict = self._verdict or why
        self._process.kill()

    def bury(self) -> str:
        """After the end of its events: waits for its own, and tells what it died of."""
        try:
            code = self._process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._listener.join(LAST_WORDS_S)
        for stream in (self.requests, self.events):
            close(stream)
        return self._verdict or cause_of_death(code, self._last_words)

    def _listen(self) -> None:
        """Reads its standard error, to quote its last words."""
        assert self._process.stderr is not None
        with self._process.stderr as words:
            while raw := words.readline(MAX_LINE_BYTES):
                line = raw.decode("utf-8", "replace").rstrip()
                if line:
                    self._last_words.append(line)
                    self._log.line("debug", f"worker {self.pid}: {line}")


def cause_of_death(code: int, last_words: Iterable[str]) -> str:
    """What an exit code means, with the last line that names an error.

    >>> cause_of_death(-6, ["loading", "GGML_ASSERT(n > 0) failed", "Fatal Python error: Aborted"])
    'was ended by SIGABRT: GGML_ASSERT(n > 0) failed'
    """
    cause = f"ended with code {code}"
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        cause = f"was ended by {known.get(-code, f'signal {-code}')}"
    errors = [line for line in last_words if _names_an_error(line)]
    return f"{cause}: {errors[-1]}" if errors else cause


def _names_an_error(line: str) -> bool:
    """Not so what Python adds to a signal, nor the lines of a traceback."""
    words = ("GGML_ASSERT", "rror", "failed", "bad_alloc")
    return any(word in line for word in words) and not line.startswith(("Fatal Python", " "))


def worker_environment() -> dict[str, str]:
    """What the worker's process sees; the user's own settings of the library win."""
    passed_on = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    # Also right inside a zip file, whose path is an entry of the module search path.
    package_parent = str(Path(__file__).parents[3])
    search_path = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    return _WORKER_ENVIRONMENT | passed_on | {"PYTHONPATH": os.pathsep.join(search_path)}


def close(stream: Any) -> None:
    """Closes a pipe whose other end may be gone, and what was buffered with it."""
    with contextlib.suppress(OSError):
        stream.close()
