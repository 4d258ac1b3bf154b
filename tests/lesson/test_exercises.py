"""Answers to the five exercises of `lmlite help how-it-works`: each is one file, and one test.

An answer changes a copy of the package, and a server runs from that copy.
"""

import http.client
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import REPOSITORY
from tests.support.server_process import RunningServer

CHAT = "/v1/chat/completions"
MAX_LINES = 10  # that an answer adds


class Workshop:
    """A copy of the package."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(
            REPOSITORY / "lmlite", folder / "lmlite", ignore=shutil.ignore_patterns("lib")
        )
        self.folder = folder
        self.n_added = 0

    def change(self, file: str, before: str, after: str) -> None:
        """Replaces a text that the file has once."""
        path = self.folder / file
        text = path.read_text()
        assert text.count(before) == 1, f"{file} has changed: {before!r}"
        path.write_text(text.replace(before, after))
        self.n_added += after.count("\n") - before.count("\n")
        assert self.n_added <= MAX_LINES

    def serve(self) -> RunningServer:
        library = os.environ.get("LMLITE_LIB", str(REPOSITORY / "lmlite" / "lib"))
        return RunningServer(folder=self.folder, LMLITE_LIB=library)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_a_sampler_that_never_writes_a_digit(workshop: Workshop) -> None:
    samplers = "lmlite/worker/llama/samplers.py"
    workshop.change(
        samplers,
        "        self._lib = model.lib\n        steps",
        "        vocab = model.vocab\n"
        "        tokens = range(vocab.n_tokens)\n"
        "        digits = [t for t in tokens if set(vocab.piece(t)) & set(b'0123456789')]\n"
        "        bias = tuple((token, -100.0) for token in digits)\n"
        "        params = dataclasses.replace(params, logit_bias=params.logit_bias + bias)\n"
        "        self._lib = model.lib\n        steps",
    )
    workshop.change(samplers, "import ctypes\n", "import ctypes\nimport dataclasses\n")
    with workshop.serve() as server:
        turns = [{"role": "user", "content": "Count from 1 to 5."}]
        text = server.post(CHAT, messages=turns, temperature=0).json["choices"][0]["message"]
    assert text["content"]
    assert not any(character.isdigit() for character in text["content"])


def test_an_endpoint_that_says_hello(workshop: Workshop) -> None:
    workshop.change(
        "lmlite/server/api/openai/routes.py",
        "ROUTES = (\n",
        "ROUTES = (\n"
        '    PageRoute("/v1/hello", lambda registry, _: {"hello": registry.models()[0].name}),\n',
    )
    with workshop.serve() as server:
        assert server.get("/v1/hello").json == {"hello": "tiny"}
        assert server.get("/hello/").json == {"hello": "tiny"}
        assert server.post("/v1/hello", a=1).status == 405


def test_a_metric_of_how_long_the_server_runs(workshop: Workshop) -> None:
    metrics = "lmlite/server/watch/metrics.py"
    workshop.change(
        metrics,
        "        self._lock = threading.Lock()\n",
        "        self._lock = threading.Lock()\n        self._began_s = time.monotonic()\n",
    )
    workshop.change(metrics, "import threading\n", "import threading\nimport time\n")
    workshop.change(
        metrics,
        "        metrics: list[Metric] = [\n",
        "        uptime_s = round(time.monotonic() - self._began_s, 3)\n"
        "        metrics: list[Metric] = [\n"
        '            ("uptime_seconds", "gauge", "Since the start.", [("", uptime_s)]),\n',
    )
    with workshop.serve() as server:
        lines = server.get("/metrics").body.decode().splitlines()
    assert "# TYPE lmlite_uptime_seconds gauge" in lines
    (value,) = [line.split()[1] for line in lines if line.startswith("lmlite_uptime_seconds ")]
    assert 0 < float(value) < 60


def test_an_event_for_the_first_token(workshop: Workshop) -> None:
    workshop.change(
        "lmlite/server/watch/request_count.py",
        "                    self._first_token_s = time.monotonic()\n",
        "                    self._first_token_s = time.monotonic()\n"
        "                    if self.is_traced:\n"
        '                        self._publish("firstToken", {"text": event.text})\n',
    )
    with workshop.serve() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/log/stream")
        viewer = connection.getresponse()
        turns = [{"role": "user", "content": "Count from 1 to 5."}]
        server.post(CHAT, messages=turns, temperature=0)
        records: list[dict[str, Any]] = []
        while not records or records[-1]["data"]["type"] != "llm.prediction.output":
            line = viewer.readline()
            if line.startswith(b"data: "):
                records.append(json.loads(line[6:]))
        connection.close()
    kinds = [record["data"]["type"].removeprefix("llm.prediction.") for record in records]
    assert kinds == ["input", "firstToken", "output"]
    assert records[1]["data"]["text"] == "1"


def test_a_limit_on_viewers_of_the_log_stream(workshop: Workshop) -> None:
    logs = "lmlite/server/logs.py"
    workshop.change(
        logs,
        "            self._subscribers.add(subscriber)\n",
        "            if len(self._subscribers) >= MAX_VIEWERS:\n"
        '                raise Unavailable("too many viewers watch the log")\n'
        "            self._subscribers.add(subscriber)\n",
    )
    workshop.change(logs, "\n\nclass Log:", "\nMAX_VIEWERS = 2\n\n\nclass Log:")
    workshop.change(
        logs,
        "from typing import",
        "from lmlite.errors import Unavailable\nfrom typing import",
    )
    with workshop.serve() as server:
        viewers = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(2)]
        for viewer in viewers:
            viewer.request("GET", "/log/stream")
            assert viewer.getresponse().status == 200
        assert server.get("/log/stream").status == 503
        for viewer in viewers:
            viewer.close()
