"""Counts of one request for its log line, and its records for the log stream."""

import time
from collections.abc import Callable

from lmlite.messages import Delta, Embedded, Finished, Prompted, ReplyEvent, Returned, Started
from lmlite.server.logs import Log, printable

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
        self._log, self._reply_id, self._model, self._path = log, reply_id, model, path
        self._n_gpu_layers = n_gpu_layers
        self._began_s = time.monotonic()
        self._first_token_s: float | None = None
        self._n_prompt_of: dict[int, int] = {}  # by choice index, like the next two
        self._prompt_of: dict[int, str] = {}
        self._text_of: dict[int, str] = {}

    def add(self, event: ReplyEvent) -> None:
        """Counts an event. Publishes prompts and texts while a client reads the log stream."""
        match event:
            case Delta():
                if self._first_token_s is None:
                    self._first_token_s = time.monotonic()
            case Prompted():
                self._prompt_of[event.index] = event.text
            case Started():
                if event.index in self._prompt_of:
                    data: dict[str, object] = {"cache": event.cache} if event.cache else {}
                    self._publish("input", data | {"input": self._prompt_of.pop(event.index)})
                self.n_prompt += event.n_prompt
                self.n_cached += event.n_cached
                self._n_prompt_of[event.index] = event.n_prompt
            case Returned():
                self._text_of[event.index] = event.text
            case Finished():
                self.n_completion += event.n_completion
                if self.is_traced:
                    self._publish_output(event)
            case Embedded():
                self.n_prompt += event.n_prompt

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
        about = {"type": f"llm.prediction.{kind}", "modelIdentifier": self._model}
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
