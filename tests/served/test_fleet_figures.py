"""The dashboard and the alerts of the manual: for what /metrics has, as Prometheus reads them."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import REPOSITORY
from tests.support.server_process import RunningServer

FLEET = REPOSITORY / "lmlite" / "manual" / "fleet"
ALERTS, DASHBOARD = FLEET / "alerts.yml", FLEET / "dashboard.json"
WAIT_S = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """It has answered a chat with several tokens, so it has values for all its metrics."""
    with RunningServer() as running:
        running.chat("What is the capital of France?")
        running.wait_for_log("POST")  # a request is counted before its line, after its reply
        yield running


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def expressions() -> list[str]:
    """The dashboard's queries, with values in place of its variables."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [text.replace("$model", ".*").replace("$__rate_interval", "1m") for text in found]


def program(name: str) -> str:
    """The path of one of Prometheus's programs; skips the test without it."""
    fetched = REPOSITORY / ".venv" / "prometheus" / "usr" / "bin"
    path = shutil.which(name, path=f"{os.environ['PATH']}:{fetched}")
    if path is None:
        pytest.skip(f"{name} is missing: apt install prometheus, or make prometheus")
    return path


def checked(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- without Prometheus ----------------------------------------------------------------------


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_each_metric_that_is_asked_for_is_there(path: Path, server: RunningServer) -> None:
    text = server.get("/metrics").body.decode()
    there = set(re.findall(r"^(lmlite_\w+)", text, re.MULTILINE))
    asked = set(re.findall(r"\b(lmlite_\w+)", path.read_text()))
    assert len(asked) > 5
    assert asked - there == set()


def test_each_panel_has_queries_and_its_own_place() -> None:
    panels = dashboard()["panels"]
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["targets"] for panel in panels)


def test_no_label_is_asked_for_that_a_server_does_not_give(server: RunningServer) -> None:
    """Prometheus itself adds `instance` and `job`."""
    text = server.get("/metrics").body.decode()
    there = set(re.findall(r'[{,](\w+)="', text)) | {"instance", "job"}
    words = f"{ALERTS.read_text()} {' '.join(expressions())}"
    asked = set(re.findall(r"[{,] ?(\w+)[=!]", words))
    asked |= {
        name for names in re.findall(r"by \(([\w, ]+)\)", words) for name in names.split(", ")
    }
    assert asked - there == set()


# ---- with Prometheus -------------------------------------------------------------------------


def test_promtool_accepts_the_text_of_a_live_server(server: RunningServer) -> None:
    text = server.get("/metrics").body.decode()
    assert checked(program("promtool"), "check", "metrics", text=text) == ""


def test_promtool_accepts_the_alerts() -> None:
    out = checked(program("promtool"), "check", "rules", str(ALERTS))
    assert f"SUCCESS: {len(alerts())} rules found" in out


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


AT = 'instance="a",job="lmlite"'
# What makes each alert fire: series, and their values, one a minute for 20 minutes.
FIRING = {
    "LmliteDown": {f"up{{{AT}}}": "0x20"},
    "LmliteWorkerDies": {f"lmlite_worker_starts_total{{{AT}}}": "1+1x20",
                         f"lmlite_model_loads_total{{{AT}}}": "0x20"},
    "LmliteErrors": {f'lmlite_requests_total{{{AT},path="p",status="200"}}': "0+90x20",
                     f'lmlite_requests_total{{{AT},path="p",status="503"}}': "0+10x20"},
    "LmliteFirstTokenLate": {
        f'lmlite_first_token_seconds_bucket{{{AT},model="m",path="p",le="10"}}': "0+90x20",
        f'lmlite_first_token_seconds_bucket{{{AT},model="m",path="p",le="25"}}': "0+100x20",
        f'lmlite_first_token_seconds_bucket{{{AT},model="m",path="p",le="+Inf"}}': "0+100x20"},
    "LmliteStreamsStall": {
        f'lmlite_between_tokens_seconds_bucket{{{AT},model="m",path="p",le="1"}}': "0+90x20",
        f'lmlite_between_tokens_seconds_bucket{{{AT},model="m",path="p",le="2.5"}}': "0+100x20",
        f'lmlite_between_tokens_seconds_bucket{{{AT},model="m",path="p",le="+Inf"}}': "0+100x20"},
    "LmliteQueueStays": {f"lmlite_sequences_waiting{{{AT}}}": "1x20"},
    "LmliteRefusesConnections": {
        f'lmlite_connections_refused_total{{{AT},reason="threads"}}': "0+1x20"},
}  # fmt: skip
# The same, in order: one load for each start, few errors, fast answers, short queues.
QUIET = {
    f"up{{{AT}}}": "1x20",
    f"lmlite_worker_starts_total{{{AT}}}": "1+1x20",
    f"lmlite_model_loads_total{{{AT}}}": "1+1x20",
    f'lmlite_requests_total{{{AT},path="p",status="200"}}': "0+99x20",
    f'lmlite_requests_total{{{AT},path="p",status="503"}}': "0+1x20",
    f'lmlite_first_token_seconds_bucket{{{AT},model="m",path="p",le="10"}}': "0+100x20",
    f'lmlite_first_token_seconds_bucket{{{AT},model="m",path="p",le="+Inf"}}': "0+100x20",
    f'lmlite_between_tokens_seconds_bucket{{{AT},model="m",path="p",le="1"}}': "0+100x20",
    f'lmlite_between_tokens_seconds_bucket{{{AT},model="m",path="p",le="+Inf"}}': "0+100x20",
    f"lmlite_sequences_waiting{{{AT}}}": "0 9 0 9 0 9 0 9 0 9 0 9 0 9 0 9 0 9 0 9 0",
    f'lmlite_connections_refused_total{{{AT},reason="threads"}}': "5x20",
}


def firing(series: dict[str, str], tmp_path: Path) -> dict[str, bool]:
    """Which alerts fire after 20 minutes of these series, as promtool computes it."""
    found = {}
    for name in alerts():
        case = {
            "rule_files": [str(ALERTS)],
            "tests": [{
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "alert_rule_test": [{"eval_time": "20m", "alertname": name, "exp_alerts": []}],
            }],
        }  # fmt: skip
        path = tmp_path / "case.yml"
        path.write_text(json.dumps(case))  # JSON is YAML
        done = subprocess.run([program("promtool"), "test", "rules", path], capture_output=True)
        assert done.returncode == 0 or b"exp:[" in done.stdout + done.stderr, done
        found[name] = done.returncode != 0
    return found


def test_each_alert_fires_for_its_fault_alone(tmp_path: Path) -> None:
    assert FIRING.keys() == set(alerts())
    for name, series in FIRING.items():
        found = firing(series, tmp_path)
        assert [other for other, fires in found.items() if fires] == [name]


def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    assert not any(firing(QUIET, tmp_path).values())


class Prometheus:
    """A Prometheus that scrapes a server. Runs inside `with`."""

    def __init__(self, folder: Path, server: RunningServer) -> None:
        config = {
            "global": {"scrape_interval": "100ms", "scrape_timeout": "100ms",
                       "evaluation_interval": "100ms"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [{"job_name": "lmlite", "static_configs": [
                {"targets": [f"127.0.0.1:{server.port}"]}]}],
        }  # fmt: skip
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self._command = [
            program("prometheus"), f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:0",
        ]  # fmt: skip

    def __enter__(self) -> "Prometheus":
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r'"Listening on" address=(127\.0\.0\.1:\d+)', line):
                self.url = f"http://{found[1]}/api/v1"
            if "Server is ready" in line:
                return self
        raise AssertionError("Prometheus ended before it was ready")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=WAIT_S)

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}") as reply:
            return json.load(reply)["data"]

    def wait_for(self, query: str) -> Any:
        """The rows of a query, once there are some."""
        deadline_s = time.monotonic() + WAIT_S
        while not (rows := self.get("/query", query=query)["result"]):
            assert time.monotonic() < deadline_s, f"never a value: {query}"
        return rows


def test_prometheus_scrapes_a_live_server_for_every_panel(
    server: RunningServer, tmp_path: Path
) -> None:
    with Prometheus(tmp_path, server) as prometheus:
        prometheus.wait_for('lmlite_prompt_tokens_count{job="lmlite"}')
        for query in expressions():
            prometheus.wait_for(query)
        server.chat("What is the capital of Italy?")
        prometheus.wait_for('lmlite_cached_ratio_count{path="/v1/chat/completions"} == 2')
        (group,) = prometheus.get("/rules")["groups"]
        assert [rule["health"] for rule in group["rules"]] == ["ok"] * len(alerts())
        (target,) = prometheus.get("/targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
