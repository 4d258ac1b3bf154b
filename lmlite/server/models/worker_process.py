"""One worker's process: its start, its pipes, its end and the cause of its end.

The kernel ends a worker when the thread that started it ends.
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
STDERR_WAIT_S = 1.0  # how long its standard error may take to be read after that
MAX_LINE_BYTES = 4096  # of standard error; a longer line is split

# -P: Python does not import modules from the current folder. -S: nor does it set up site-packages,
# which a worker does not need: 1 MiB and some milliseconds.
WORKER_COMMAND = (sys.executable, "-S", "-P", "-m", "lmlite.worker")

# Prefixes of environment variables that a worker may see. Others may hold keys and secrets.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_", "TMPDIR", "LD_", "DYLD_", "PYTHON", "CUDA_", "HIP_",
              "ROCR_", "HSA_", "VK_", "GGML_", "OMP_", "GOMP_")  # fmt: skip
_WORKER_ENVIRONMENT = {
    # By default ggml starts a debugger after a crash. With this, the process ends at once.
    "GGML_NO_BACKTRACE": "1",
}


def start(command: Sequence[str] = WORKER_COMMAND) -> subprocess.Popen[bytes]:
    """Starts a worker. It waits for its model, and ends with its input. Raises OSError."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=worker_environment(),
    )


class WorkerProcess:
    """A running process. Its owner must call `reap` at its end."""

    def __init__(
        self,
        command: Sequence[str],
        log: Log,
        started: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Starts the process unless it is `started` already, by `start`.

        Raises OSError, or RuntimeError if no thread can be started.
        """
        self._process = process = started or start(command)
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self.requests: BinaryIO = process.stdin  # type: ignore[assignment]
        self.events: BinaryIO = process.stdout  # type: ignore[assignment]
        self._log = log
        self._kill_reason: str | None = None
        self._stderr_lines: collections.deque[str] = collections.deque(maxlen=50)
        self._stderr_reader = threading.Thread(target=self._read_stderr, daemon=True)
        try:
            self._stderr_reader.start()
        except BaseException:
            process.kill()
            process.communicate()
            raise

    def kill(self, why: str | None = None) -> None:
        """Ends the process at once. May be called from any thread, also after its end."""
        self._kill_reason = self._kill_reason or why
        self._process.kill()

    def reap(self) -> str:
        """Waits for the process to end, after its events have ended; returns the cause."""
        try:
            code = self._process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._stderr_reader.join(STDERR_WAIT_S)
        for stream in (self.requests, self.events):
            close(stream)
        return self._kill_reason or exit_cause(code, self._stderr_lines)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            while raw := stderr.readline(MAX_LINE_BYTES):
                line = raw.decode("utf-8", "replace").rstrip()
                if line:
                    self._stderr_lines.append(line)
                    self._log.line("debug", f"worker {self.pid}: {line}")


def exit_cause(code: int, stderr_lines: Iterable[str]) -> str:
    """The meaning of an exit code, and the last line of standard error that names an error.

    >>> exit_cause(-6, ["loading", "GGML_ASSERT(n > 0) failed", "Fatal Python error: Aborted"])
    'was ended by SIGABRT: GGML_ASSERT(n > 0) failed'
    """
    cause = f"ended with code {code}"
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        cause = f"was ended by {known.get(-code, f'signal {-code}')}"
    words = ("GGML_ASSERT", "rror", "failed", "bad_alloc", "ggml-rpc")
    # Python's own line about a signal and the indented lines of a traceback name no cause.
    lines = (line for line in stderr_lines if not line.startswith(("Fatal Python", " ")))
    errors = [line for line in lines if any(word in line for word in words)]
    return f"{cause}: {errors[-1]}" if errors else cause


def worker_environment() -> dict[str, str]:
    """A worker's environment. The user's settings override those of _WORKER_ENVIRONMENT."""
    passed_on = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    # If lmlite runs from a zip file, this is the path of that file, which works, too.
    package_parent = str(Path(__file__).parents[3])
    search_path = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    return _WORKER_ENVIRONMENT | passed_on | {"PYTHONPATH": os.pathsep.join(search_path)}


def close(stream: Any) -> None:
    """Closes a pipe. If its other end is already closed, buffered bytes are lost."""
    with contextlib.suppress(OSError):
        stream.close()
