"""Counts for GET /metrics in Prometheus's text format, one number per line.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/. Counters live as long
as the server. The engine's numbers come from its last report, which is at most a second old while
the engine works. They restart from zero with a new worker.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lmlite.messages import STEP_BOUNDS_S, EngineState
from lmlite.server.models.registry import Registry
from lmlite.server.watch.histogram import Histogram
from lmlite.server.watch.request_count import HISTOGRAMS, RequestCount

REFUSALS = ("connections", "address", "threads")
TOKENS = ("prompt", "cached", "completion")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Rows = Iterable[tuple[str, Any]]  # (what follows the metric's name, such as labels; value)
Metric = tuple[str, str, str, Rows]  # name, kind, help, rows


class Metrics:
    """Counters of the server. Each method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self._cut: Counter[int] = Counter()  # by status
        self._tokens: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        # By name, and by model and path: both are this server's words, never a client's.
        self._histograms: dict[str, dict[tuple[str, str], Histogram]] = {n: {} for n in HISTOGRAMS}

    def count(self, path: str, status: int, count: RequestCount | None, *, is_cut: bool) -> None:
        """Counts an ended request and its tokens. `is_cut`: its reply was begun, not completed."""
        with self._lock:
            self._requests[path, status] += 1
            self._cut[status] += is_cut
            if count is not None:
                self._tokens["prompt"] += count.n_prompt - count.n_cached
                self._tokens["cached"] += count.n_cached
                self._tokens["completion"] += count.n_completion
                for name, histogram in count.histograms().items():
                    known = self._histograms[name].setdefault((count.model, path), histogram)
                    if known is not histogram:
                        known.merge(histogram)

    def count_refusal(self, reason: str) -> None:
        """Counts a refused connection. The reason is one of REFUSALS: the exceeded limit."""
        with self._lock:
            self._refusals[reason] += 1

    def text(
        self,
        *,
        n_connections: int,
        n_dropped: Mapping[str, int],
        registry: Registry,
    ) -> str:
        """All metrics, in the text format. `n_dropped`: lines and records of the log by reader."""
        loaded = registry.loaded()
        ready = [(model.name, model.ready) for model in loaded]
        engines = {
            "" if registry.is_single else name: state.engine
            for name, state in ready
            if state and state.engine
        }
        with self._lock:
            requests = [
                (f'{{path="{path}",status="{status}"}}', n)
                for (path, status), n in sorted(self._requests.items())
            ]
            cut = _by("status", dict(sorted((+self._cut).items())))
            refusals = _by("reason", {reason: self._refusals[reason] for reason in REFUSALS})
            tokens = _by("kind", {kind: self._tokens[kind] for kind in TOKENS})
            histograms = self._histogram_metrics()
        metrics: list[Metric] = [
            ("connections_open", "gauge", "Connections.", [("", n_connections)]),
            ("connections_refused_total", "counter", "By what there were too many of.", refusals),
            ("requests_total", "counter", "Requests by path and status.", requests),
            ("answers_cut_total", "counter", "Begun and cut short, by status.", cut),
            ("tokens_total", "counter", "Tokens read, found in memory, generated.", tokens),
            ("log_dropped_total", "counter", "What a reader did not take in time.",
             _by("reader", n_dropped)),
            ("requests_open", "gauge", "Requests at work.", [("", registry.n_open())]),
            ("worker_starts_total", "counter", "Workers.", [("", registry.n_worker_starts())]),
            ("model_loads_total", "counter", "Models loaded.", [("", registry.n_loads)]),
            ("model_unloads_total", "counter", "Models unloaded.", [("", registry.n_unloads)]),
            ("models_loaded", "gauge", "Models with a worker.", [("", len(loaded))]),
            ("ready", "gauge", "1: answers.", [("", int(any(state for _, state in ready)))]),
        ]  # fmt: skip
        return _text(metrics + histograms + _engine_metrics(engines))

    def _histogram_metrics(self) -> list[Metric]:
        metrics: list[Metric] = []
        for name, (_, words) in HISTOGRAMS.items():
            rows: list[tuple[str, Any]] = []
            for (model, path), found in sorted(self._histograms[name].items()):
                of = {"model": model, "path": path}
                rows += _buckets(of, found.bounds, found.within(), found.total)
            metrics.append((name, "histogram", words, rows))
        return metrics


def _engine_metrics(engines: Mapping[str, EngineState]) -> list[Metric]:
    """Metrics of each model, by its name; the name "" makes rows without a label for it."""
    rows: defaultdict[str, list[tuple[str, Any]]] = defaultdict(list)
    for name, engine in engines.items():
        of = {"model": name} if name else {}
        used, idle = engine.n_cells_used, engine.n_cells_idle
        cells = {"used": used, "idle": idle, "free": engine.n_cells - used - idle}
        within = [*engine.steps_within, engine.n_steps]
        rows["running"] += [(_labels(of), engine.n_running)]
        rows["waiting"] += [(_labels(of), engine.n_waiting)]
        rows["cells"] += _by("state", cells, of)
        rows["parked"] += [(_labels(of), engine.n_bytes_parked)]
        drafts = {"drafted": engine.n_drafted, "accepted": engine.n_accepted}
        rows["drafts"] += _by("kind", drafts, of)
        rows["steps"] += _buckets(of, STEP_BOUNDS_S, within, engine.step_s)
    metrics: list[Metric] = [
        ("sequences_running", "gauge", "Sequences at work.", rows["running"]),
        ("sequences_waiting", "gauge", "Sequences that wait.", rows["waiting"]),
        ("memory_cells", "gauge", "Cells of memory, one per token or per state.", rows["cells"]),
        ("parked_bytes", "gauge", "Finished conversations outside of it.", rows["parked"]),
        ("draft_tokens_total", "counter", "Proposed by a draft model; right.", rows["drafts"]),
        ("step_seconds", "histogram", "How long a step of the engine takes.", rows["steps"]),
    ]
    return metrics if engines else []


def _by(
    label: str, counts: Mapping[Any, Any], more: Mapping[str, str] = MappingProxyType({})
) -> list[tuple[str, Any]]:
    return [(_labels({**more, label: value}), n) for value, n in counts.items()]


def _buckets(
    of: Mapping[str, str], bounds: Sequence[float], within: Sequence[int], total: float
) -> list[tuple[str, Any]]:
    """The rows of a histogram: `within` counts the values up to each bound, then all of them."""
    buckets = dict(zip([*map(str, bounds), "+Inf"], within, strict=True))
    return [
        *((f"_bucket{labels}", n) for labels, n in _by("le", buckets, of)),
        (f"_sum{_labels(of)}", f"{total:.6f}"),
        (f"_count{_labels(of)}", within[-1]),
    ]


def _labels(pairs: Mapping[str, object]) -> str:
    r"""The labels of a row.

    >>> print(_labels({"model": 'a "b"', "le": 1}))
    {model="a \"b\"",le="1"}
    """
    escaped = (
        (name, str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n"))
        for name, value in pairs.items()
    )
    inner = ",".join(f'{name}="{value}"' for name, value in escaped)
    return f"{{{inner}}}" if inner else ""


def _text(metrics: Iterable[Metric]) -> str:
    lines = []
    for name, kind, words, rows in metrics:
        lines += [f"# HELP lmlite_{name} {words}", f"# TYPE lmlite_{name} {kind}"]
        lines += [f"lmlite_{name}{labels} {value}" for labels, value in rows]
    return "\n".join([*lines, ""])
