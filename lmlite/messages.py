"""What crosses the pipe between the server and a worker: requests one way, events the other.

Frozen dataclasses and nothing else. `frames.py` turns them into bytes by reading the
annotations below, so a field's annotation is its wire format. `id` names a request, unique
among those of one worker; `index` names one of its choices (or inputs), from 0.
"""

from dataclasses import dataclass
from typing import Literal

Prompt = str | tuple[int, ...]  # text, or token ids that the client chose


# Why a completion ended; the first two are OpenAI's "stop", the others its "length".
Cause = Literal["end_token", "stop_string", "max_tokens", "context_full"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the next token. Defaults are llama.cpp's, for a request that says nothing."""

    temperature: float = 0.8  # 0: always the most likely token
    top_k: int = 40  # 0: all tokens
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0  # 1: none; over the last 64 tokens, the prompt's included
    presence_penalty: float = 0.0  # over the completion, as OpenAI defines it
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None  # None: another one for each request
    max_tokens: int | None = None  # None: until the model ends or the context is full
    stop: tuple[str, ...] = ()
    n_logprobs: int | None = None  # None: not asked for; else how many alternatives per token


# ---- requests: server to worker -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """The first message, once: which model to serve and how. None leaves it to the worker."""

    model_path: str
    generates: bool = True  # False: an embedding model
    lib_path: str | None = None
    n_ctx: int | None = None  # tokens of the context, shared by all sequences
    n_parallel: int = 4  # sequences that generate at the same time
    n_queue: int = 64  # requests that may wait for them
    n_threads: int | None = None
    n_batch: int = 512  # tokens of one decode
    n_gpu_layers: int = -1  # -1: as many as fit
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: str = "auto"
    chat_template: str | None = None  # its text; None: the model's own
    log_level: Literal["debug", "info", "warning", "error"] = "error"  # of llama.cpp


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation; content parts are joined already."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """Render the messages with the chat template, then complete."""

    id: int
    messages: tuple[ChatMessage, ...]
    params: SamplingParams
    n: int = 1
    trace: bool = False  # someone watches: send `Prompted` events


@dataclass(frozen=True, slots=True)
class Complete:
    """Complete each prompt as it stands, `n` times; choice index = prompt index * n + i."""

    id: int
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    n: int = 1
    echo: bool = False  # the prompt's text (and log-probabilities) come first
    trace: bool = False


@dataclass(frozen=True, slots=True)
class Embed:
    """One vector for each input."""

    id: int
    inputs: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for request `id` any more."""

    id: int


Request = Load | Chat | Complete | Embed | Cancel

# ---- events: worker to server -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loading:
    """How much of the model is in memory, 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; requests may come."""

    n_ctx: int  # tokens that one sequence may hold
    n_vocab: int
    n_embd: int
    n_parallel: int
    n_threads: int
    n_gpu_layers: int
    generates: bool  # False: an embedding model


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded, and trying again would not help."""

    message: str


@dataclass(frozen=True, slots=True)
class Prompted:
    """The exact text that the model receives, for those who watch the log stream."""

    id: int
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Queued:
    """A choice waits for a place; so many others are in front of it."""

    id: int
    index: int
    n_ahead: int


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt is accepted: nothing that a client can get wrong is left."""

    id: int
    index: int
    n_prompt: int
    n_cached: int  # prompt tokens that were in memory already


@dataclass(frozen=True, slots=True)
class Reading:
    """How much of a long prompt is in memory; sent while there is more to read."""

    id: int
    index: int
    n_read: int
    n_prompt: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural-log probability before any sampler, and the likeliest instead of it."""

    piece: bytes
    logprob: float | None  # None: the first token of a prompt, which nothing precedes
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of a choice: whole characters, no part of a stop string."""

    id: int
    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice is complete. `n_completion` counts every sampled token, the end token too."""

    id: int
    index: int
    reason: Literal["stop", "length"]
    n_completion: int
    cause: Cause = "end_token"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vector of one input: float32, little endian, of length 1."""

    id: int
    index: int
    n_prompt: int
    vector: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ends here, with an error of `errors.KINDS`."""

    id: int
    kind: str
    message: str
    param: str | None = None


# Those with an id, of one request.
ReplyEvent = Prompted | Queued | Started | Reading | Delta | Finished | Embedded | Failed
Event = Loading | Ready | LoadFailed | ReplyEvent
