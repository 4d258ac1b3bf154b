"""Counts of one request for its log line, and its records for the log stream."""

import time
from collections.abc import Callable

from lmlite.messages import (
    STEP_BOUNDS_S,
    Delta,
    Embedded,
    Finished,
    Prompted,
    ReplyEvent,
    Returned,
    Scored,
    Started,
)
from lmlite.server.logs import Log, printable
from lmlite.server.watch.histogram import Histogram

_WAIT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_PROMPT_BOUNDS = tuple(2**n for n in range(5, 18))  # tokens: 32 to 131,072
_SHARE_BOUNDS = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
# Name in /metrics -> bounds and meaning. Servers of different versions add up only if none changes.
HISTOGRAMS: dict[str, tuple[tuple[float, ...], str]] = {
    "queue_seconds": (_WAIT_BOUNDS_S, "From a request to the start of its prompt."),
    "first_token_seconds": (_WAIT_BOUNDS_S, "From a request to the first piece of its answer."),
    "between_tokens_seconds": (STEP_BOUNDS_S, "From one piece of an answer to the next."),
    "prompt_tokens": (_PROMPT_BOUNDS, "Prompt tokens of a request."),
    "cached_ratio": (_SHARE_BOUNDS, "Share of a request's prompt that was in memory."),
}

_STOP_REASONS = {  # LM Studio's words
    "end_token": "eosFound",
    "stop_string": "stopStringFound",
    "max_tokens": "maxPredictedTokensReached",
    "context_full": "contextLengthReached",
    "time_limit": "timeLimitReached",  # LM Studio has no word for it
}


class RequestCount:
    """Counts the events of one request. Belongs to the thread that serves the request."""

    def __init__(
        self, log: Log, reply_id: str, model: str, path: str, n_gpu_layers: Callable[[], int]
    ) -> None:
        """`path` is the model's file; `n_gpu_layers` is called when the model is loaded."""
        self.n_prompt = self.n_cached = self.n_completion = 0  # tokens
        self.is_traced = log.is_watched("model")
        self._log, self._reply_id, self.model, self._path = log, reply_id, model, path
        self._n_gpu_layers = n_gpu_layers
        self._began_s = time.monotonic()
        self._started_s: float | None = None
        self._first_token_s: float | None = None
        self._last_token_s: dict[int, float] = {}  # by choice index
        self._gaps = Histogram(STEP_BOUNDS_S)  # between tokens
        self._n_prompt_of: dict[int, int] = {}  # by choice index, like the next two
        self._prompt_of: dict[int, str] = {}
        self._text_of: dict[int, str] = {}

    def add(self, event: ReplyEvent) -> None:
        """Counts an event. Publishes prompts and texts while a client reads the log stream."""
        match event:
            case Delta():
                if self._first_token_s is None:
                    self._first_token_s = time.monotonic()
                self._count_gap(event.index)
            case Prompted():
                self._prompt_of[event.index] = event.text
            case Started():
                if event.index in self._prompt_of:
                    data: dict[str, object] = {"cache": event.cache} if event.cache else {}
                    self._publish("input", data | {"input": self._prompt_of.pop(event.index)})
                self._started_s = self._started_s or time.monotonic()
                self.n_prompt += event.n_prompt
                self.n_cached += event.n_cached
                self._n_prompt_of[event.index] = event.n_prompt
            case Returned():
                self._text_of[event.index] = event.text
            case Finished():
                self.n_completion += event.n_completion
                if self.is_traced:
                    self._publish_output(event)
            case Embedded() | Scored():
                self.n_prompt += event.n_prompt

    def histograms(self) -> dict[str, Histogram]:
        """What this request adds to each of HISTOGRAMS; those without a value are left out."""
        values = {
            "queue_seconds": self._started_s and self._started_s - self._began_s,
            "first_token_seconds": self._first_token_s and self._first_token_s - self._began_s,
            "prompt_tokens": self.n_prompt or None,
            "cached_ratio": self.n_cached / self.n_prompt if self._started_s else None,
        }
        found = {"between_tokens_seconds": self._gaps}
        for name, value in values.items():
            if value is not None:
                found[name] = Histogram(HISTOGRAMS[name][0])
                found[name].add(value)
        return found

    def _count_gap(self, index: int) -> None:
        """Counts the time since the choice's last piece. Its cost is paid for each token."""
        now_s = time.monotonic()
        last_s = self._last_token_s.get(index)
        if last_s is not None:
            self._gaps.add(now_s - last_s)
        self._last_token_s[index] = now_s

    def details(self) -> dict[str, object]:
        """The model and the tokens, as fields of a line of the log."""
        return {
            "model": self.model,
            "prompt_tokens": self.n_prompt,
            "cached_tokens": self.n_cached,
            "completion_tokens": self.n_completion,
        }

    def summary(self) -> str:
        """For the log line: tokens in and out, and their speed. Empty if no prompt was read."""
        if not self.n_prompt:
            return ""
        text = f", {self.n_prompt:,} prompt"
        if self.n_cached:
            text += f" ({self.n_cached:,} cached)"
        if self.n_completion:
            text += f" + {self.n_completion:,} completion"
        text += " tokens"
        speed = self._tokens_per_s(self.n_completion)
        return f"{text}, {speed:.1f} tokens/s" if speed else text

    def _tokens_per_s(self, n_tokens: int) -> float | None:
        """Speed after the first token; the time to that token is spent on the prompt."""
        if self._first_token_s is None or n_tokens < 2:
            return None
        return (n_tokens - 1) / max(time.monotonic() - self._first_token_s, 1e-6)

    def _publish(self, kind: str, data: dict[str, object]) -> None:
        about = {"type": f"llm.prediction.{kind}", "modelIdentifier": self.model}
        if kind == "input":  # LM Studio's output records do not have this field
            about["modelPath"] = printable(self._path)
        self._log.publish("model", about | {"requestId": self._reply_id} | data)

    def _publish_output(self, event: Finished) -> None:
        now = time.monotonic()
        first_s = self._first_token_s or now
        n_prompt = self._n_prompt_of.get(event.index, 0)
        stats = {
            "stopReason": _STOP_REASONS[event.cause],
            "tokensPerSecond": round(self._tokens_per_s(event.n_completion) or 0.0, 2),
            "numGpuLayers": self._n_gpu_layers(),
            "timeToFirstTokenSec": round(first_s - self._began_s, 4),
            "totalTimeSec": round(now - self._began_s, 4),
            "promptTokensCount": n_prompt,
            "predictedTokensCount": event.n_completion,
            "totalTokensCount": n_prompt + event.n_completion,
        }
        text = self._text_of.pop(event.index, "")
        self._publish("output", {"output": text, "stats": stats})
