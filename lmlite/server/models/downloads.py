"""Downloads of models on behalf of clients. The server itself opens no connection.

Each download is a process of its own, `lmlite get --json`. It ends with the server: `close` ends
it, and if the server was killed, its next line of output does.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlite.errors import BadRequest, NotFound, Unavailable
from lmlite.server.models.worker_process import worker_environment

ENDPOINT = "https://huggingface.co"  # unless HF_ENDPOINT names another
MAX_RUNNING = 4
MAX_KEPT = 100  # jobs
START_S = 60.0  # how long a client waits for the size of a model
GET_COMMAND = (sys.executable, "-P", "-m", "lmlite", "get", "--json")
_SIZES = ("total_size_bytes", "downloaded_bytes")
_SPEEDS = ("bytes_per_second", "estimated_completion")  # only while it runs

# Prefixes of variables that a download needs besides those of a worker, in lower case.
_PASSED_ON = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "hf_token", "hf_endpoint",
              "ssl_cert_", "xdg_", "pip_")  # fmt: skip


@dataclass
class Job:
    """One download."""

    wanted: str  # owner/repository:quantisation
    process: subprocess.Popen[bytes]
    reply: dict[str, Any] = field(default_factory=dict)  # its fields, as LM Studio names them
    reader: threading.Thread | None = None

    def is_running(self) -> bool:
        """Whether its process has not told its end."""
        return bool(self.reply["status"] == "downloading")

    def take(self, event: dict[str, Any]) -> None:
        """Takes an event of `lmlite.downloads.progress`."""
        self.reply = {name: self.reply[name] for name in self.reply if name not in _SPEEDS}
        self.reply |= {name: event[name] for name in _SIZES if name in event}
        if event["event"] == "progress":
            self.reply["bytes_per_second"] = event["bytes_per_second"]
            if event["seconds_left"] is not None:
                self.reply["estimated_completion"] = _clock(event["seconds_left"])
        elif event["event"] == "done":
            was_missing = self.reply["total_size_bytes"]
            self.reply["status"] = "completed" if was_missing else "already_downloaded"
            self.reply["completed_at"] = _clock()
        elif event["event"] == "error":
            self.reply |= {"status": "failed", "error": event["message"]}


class Downloads:
    """The downloads of this server. Any thread may call its methods."""

    def __init__(self, folder: Path, command: Sequence[str] = GET_COMMAND) -> None:
        """`folder`: where models are put."""
        self._command = [*command, "--models", str(folder), "--"]
        self._jobs: dict[str, Job] = {}  # the oldest first
        self._changed = threading.Condition()
        self._is_closed = False

    def start(self, model: str, quantisation: str | None) -> dict[str, Any]:
        """Starts a download, or finds the one that is running.

        Returns the fields of LM Studio's reply. Raises BadRequest or Unavailable.
        """
        endpoint = os.environ.get("HF_ENDPOINT") or ENDPOINT
        if "://" in model and not model.startswith(endpoint.rstrip("/") + "/"):
            raise BadRequest(f"only models of {endpoint} are fetched", param="model")
        wanted = f"{model}:{quantisation}" if quantisation else model
        with self._changed:
            running = [job for job in self._jobs.values() if job.is_running()]
            same = [job for job in running if job.wanted == wanted]
            if not same and (self._is_closed or len(running) >= MAX_RUNNING):
                raise Unavailable(f"{len(running)} downloads are running; try again later")
            job = same[0] if same else self._begin(wanted)
            # A model that is there already has 0 bytes to fetch, and is done at once.
            self._changed.wait_for(
                lambda: job.reply.get("total_size_bytes") or not job.is_running(), START_S
            )
            reply = job.reply
        if "error" in reply and "total_size_bytes" not in reply:  # it never began
            raise BadRequest(reply["error"], param="model")
        if reply["status"] == "already_downloaded":
            return {"status": reply["status"]}
        names = ("job_id", "status", "total_size_bytes", "started_at", "completed_at")
        return {name: reply[name] for name in names if name in reply}

    def status(self, job_id: str) -> dict[str, Any]:
        """The fields of LM Studio's reply about a job, and `error`. Raises NotFound."""
        with self._changed:
            if job_id not in self._jobs:
                raise NotFound(f"there is no download {job_id!r}", code="job_not_found")
            return dict(self._jobs[job_id].reply)

    def close(self) -> None:
        """Ends all downloads; the same requests continue them later."""
        with self._changed:
            self._is_closed = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            if job.reader:
                job.reader.join()

    def _begin(self, wanted: str) -> Job:
        try:
            process = subprocess.Popen(
                [*self._command, wanted],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # the same error is on standard output
                env=_environment(),
            )
        except ValueError:  # a zero byte, or half a character
            raise BadRequest("this is no name of a model", param="model") from None
        except OSError as err:
            raise Unavailable(f"a download cannot be started: {err.strerror}") from None
        job_id = os.urandom(16).hex()
        job = Job(wanted, process)
        job.reply = {"job_id": job_id, "status": "downloading", "started_at": _clock()}
        finished = [name for name in self._jobs if not self._jobs[name].is_running()]
        for name in finished[: max(0, len(self._jobs) + 1 - MAX_KEPT)]:
            del self._jobs[name]
        self._jobs[job_id] = job
        job.reader = threading.Thread(target=self._read, args=(job,), daemon=True)
        job.reader.start()
        return job

    def _read(self, job: Job) -> None:
        """Takes the events of one process until its end."""
        assert job.process.stdout is not None
        with job.process.stdout as lines:
            for line in lines:
                with self._changed, contextlib.suppress(ValueError):  # half a line of a killed one
                    job.take(json.loads(line))
                    self._changed.notify_all()
        code = job.process.wait()
        with self._changed:
            if job.is_running():
                job.take({"event": "error", "message": f"its process ended with code {code}"})
                self._changed.notify_all()


def _environment() -> dict[str, str]:
    needed = {key: os.environ[key] for key in os.environ if key.lower().startswith(_PASSED_ON)}
    return worker_environment() | needed


def _clock(in_s: float = 0) -> str:
    """The time now, or in some seconds, in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + in_s))
