"""Counts for GET /metrics, as Prometheus reads them: text, one number per line.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/. Counters live as long
as the server; what the engine says of itself is as old as its last report, a second at most
while it works, and begins again with a new worker.
"""

import threading
from collections import Counter
from collections.abc import Iterator

from lmlite.messages import STEP_BOUNDS_S, EngineState
from lmlite.server.models.supervisor import Supervisor
from lmlite.server.watch.request_count import Tally

REFUSALS = ("connections", "address", "threads")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of the server. `count` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._cut: Counter[int] = Counter()  # by status
        self._tokens: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()

    def count(self, path: str, status: int, tally: Tally | None, *, is_cut: bool) -> None:
        """A request that has ended, and the tokens that it took. Cut: its answer had begun."""
        with self._lock:
            self._requests[path, status] += 1
            self._cut[status] += is_cut
            if tally is not None:
                self._tokens["prompt"] += tally.n_prompt - tally.n_cached
                self._tokens["cached"] += tally.n_cached
                self._tokens["completion"] += tally.n_completion

    def count_refusal(self, reason: str) -> None:
        """A connection that got no thread: of which there are too many."""
        with self._lock:
            self._refusals[reason] += 1

    def text(self, supervisor: Supervisor, n_connections: int, n_dropped: dict[str, int]) -> str:
        """All of it, in the text format. `n_dropped`: lines and records of the log, by reader."""
        lines = self._lines(supervisor, n_connections, n_dropped)
        return "".join(line + "\n" for line in lines)

    def _lines(
        self, supervisor: Supervisor, n_connections: int, n_dropped: dict[str, int]
    ) -> Iterator[str]:
        with self._lock:
            requests, tokens = dict(self._requests), dict(self._tokens)
            refusals, cut = dict(self._refusals), dict(+self._cut)
        yield from _single("connections_open", "gauge", "Connections.", n_connections)
        yield from _heading("connections_refused_total", "counter", "By what were too many.")
        for reason in REFUSALS:
            n = refusals.get(reason, 0)
            yield f'lmlite_connections_refused_total{{reason="{reason}"}} {n}'
        yield from _heading("requests_total", "counter", "Requests by path and status.")
        for (path, status), n in sorted(requests.items()):
            yield f'lmlite_requests_total{{path="{path}",status="{status}"}} {n}'
        yield from _heading("answers_cut_total", "counter", "Begun and cut short, by status.")
        for status, n in sorted(cut.items()):
            yield f'lmlite_answers_cut_total{{status="{status}"}} {n}'
        yield from _heading("tokens_total", "counter", "Tokens read, found in memory, generated.")
        for kind in ("prompt", "cached", "completion"):
            yield f'lmlite_tokens_total{{kind="{kind}"}} {tokens.get(kind, 0)}'
        yield from _heading("log_dropped_total", "counter", "What a reader did not take in time.")
        for reader, n in n_dropped.items():
            yield f'lmlite_log_dropped_total{{reader="{reader}"}} {n}'
        yield from _single("requests_open", "gauge", "Requests at work.", supervisor.n_open())
        yield from _single("worker_starts_total", "counter", "Workers.", supervisor.n_started)
        yield from _single("ready", "gauge", "1: answers.", int(supervisor.ready is not None))
        if supervisor.state is not None:
            yield from _engine_lines(supervisor.state)


def _engine_lines(state: EngineState) -> Iterator[str]:
    yield from _single("sequences_running", "gauge", "Sequences at work.", state.n_running)
    yield from _single("sequences_waiting", "gauge", "Sequences that wait.", state.n_waiting)
    yield from _heading("memory_cells", "gauge", "Cells of memory, one per token or per state.")
    n_free = state.n_cells - state.n_cells_used - state.n_cells_idle
    for name, n in (("used", state.n_cells_used), ("idle", state.n_cells_idle), ("free", n_free)):
        yield f'lmlite_memory_cells{{state="{name}"}} {n}'
    n_parked = state.n_bytes_parked
    yield from _single("parked_bytes", "gauge", "Finished conversations outside of it.", n_parked)
    yield from _heading("step_seconds", "histogram", "How long a step of the engine takes.")
    for bound_s, n in zip(STEP_BOUNDS_S, state.steps_within, strict=True):
        yield f'lmlite_step_seconds_bucket{{le="{bound_s}"}} {n}'
    yield f'lmlite_step_seconds_bucket{{le="+Inf"}} {state.n_steps}'
    yield f"lmlite_step_seconds_sum {state.step_s:.6f}"
    yield f"lmlite_step_seconds_count {state.n_steps}"


def _heading(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP lmlite_{name} {words}"
    yield f"# TYPE lmlite_{name} {kind}"


def _single(name: str, kind: str, words: str, value: int) -> Iterator[str]:
    yield from _heading(name, kind, words)
    yield f"lmlite_{name} {value}"
