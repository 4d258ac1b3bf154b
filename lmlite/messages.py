"""What crosses the pipe between the server and a worker: requests one way, events the other.

Frozen dataclasses and nothing else. `frames.py` turns them into bytes by reading the
annotations below, so a field's annotation is its wire format. `id` names a request, unique
among those of one worker; `index` names one of its choices (or inputs), from 0.
"""

from dataclasses import dataclass
from typing import Any, Literal

Prompt = str | tuple[int, ...]  # text, or token ids that the client chose
Json = dict[str, Any]  # a client's object, as it came


# Why a completion ended; the first two are OpenAI's "stop", the others its "length".
Cause = Literal["end_token", "stop_string", "max_tokens", "context_full", "time_limit"]


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
    min_tokens: int = 0  # before which neither the model nor a stop string ends it
    ignore_eos: bool = False  # the model never ends it


# ---- requests: server to worker -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A file of a model, as it was when it was checked: what changes when the file does."""

    path: str
    dev: int
    ino: int
    n_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How a model is stretched over more tokens than it was trained for, by llama.cpp's names.

    None leaves a value to the model.
    """

    kind: Literal["none", "linear", "yarn"] | None = None
    freq_base: float | None = None
    freq_scale: float | None = None  # 1/N for N times as many tokens
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """The first message, once: which model to serve and how. None leaves it to the worker."""

    model_path: str
    parts: tuple[ModelPart, ...] = ()  # all of its files
    generates: bool = True  # False: an embedding model
    lib_path: str | None = None
    n_ctx: int | None = None  # tokens of the context, shared by all sequences
    n_parallel: int = 4  # sequences that generate at the same time
    n_queue: int = 64  # requests that may wait for them
    max_s: float = 600.0  # for one answer, from its first token
    n_threads: int | None = None
    n_batch: int = 512  # tokens of one decode
    prefill_budget_s: float = 0.25  # of a step that reads prompts while somebody is being answered
    n_gpu_layers: int = -1  # -1: as many as fit
    uses_gpu: bool = False  # whether there may be one
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: str = "auto"
    rope: RopeScaling = RopeScaling()
    chat_template: str | None = None  # its text; None: the model's own
    cache_dir: str | None = None  # for checkpoints that survive a restart
    cache_size: int = 512 << 20  # bytes in that folder
    checkpoint_memory: int = 128 << 20  # bytes outside of the context, for prompts that were read
    mmproj_path: str | None = None  # the file that lets the model see
    image_memory: int = 64 << 20  # bytes for what pictures were encoded to
    sandbox: bool = False  # once it is loaded: no network, no programs, no writes
    embeds: bool = True  # False: a model that generates has no memory to embed, too
    log_level: Literal["debug", "info", "warning", "error"] = "error"  # of llama.cpp


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made in an earlier turn."""

    id: str
    name: str
    arguments: str  # JSON, as the model wrote it


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message: an image file whose head was found in order."""

    data: bytes
    at: int  # characters of the message's content that stand before it
    path: str  # the content part that it was, for errors


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation; content parts are joined already."""

    role: str
    content: str
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # of a tool's result: the call that it answers
    images: tuple[Image, ...] = ()  # in the order of their places


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a chat asks of the template and of the form of the answer."""

    tools: tuple[Json, ...] = ()  # as OpenAI's function tools
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_names: tuple[str, ...] = ()  # the only ones that may be called; (): any
    parallel_tool_calls: bool | None = None  # None: if the template is made for it
    json_schema: Json | None = None  # what the answer must be
    thinks: bool = True  # False: without reasoning, where the template can
    template_kwargs: Json | None = None  # further variables of the template
    separate_reasoning: bool = True  # False: reasoning stays in the content, tags and all
    stop_in_reasoning: bool = False  # the client's stop strings end thoughts, too
    tool_schemas: tuple[Json, ...] = ()  # what each tool's arguments are held to


@dataclass(frozen=True, slots=True)
class Chat:
    """Render the messages with the chat template, then complete."""

    id: int
    messages: tuple[ChatMessage, ...]
    params: SamplingParams
    n: int = 1
    trace: bool = False  # someone watches: send `Prompted` and `Returned` events
    options: ChatOptions = ChatOptions()
    dry_run: bool = False  # generate nothing: send a `Planned` for each prompt
    grammar: str | None = None  # GBNF that the whole answer is held to, thoughts and all
    truncates: bool = False  # the oldest turns are left out when it does not fit the context


@dataclass(frozen=True, slots=True)
class Complete:
    """Complete each prompt as it stands, `n` times; choice index = prompt index * n + i."""

    id: int
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    n: int = 1
    echo: bool = False  # the prompt's text (and log-probabilities) come first
    trace: bool = False
    dry_run: bool = False
    grammar: str | None = None
    json_schema: Json | None = None  # what each completion must be


@dataclass(frozen=True, slots=True)
class Embed:
    """One vector for each input."""

    id: int
    inputs: tuple[Prompt, ...]
    dimensions: int | None = None  # of them that are wanted; None: all


@dataclass(frozen=True, slots=True)
class Tokenize:
    """A text that becomes tokens, or tokens that become a text; answered by a `Planned`."""

    id: int
    prompt: Prompt
    add_special: bool = False  # what the model wants at a prompt's borders (BOS)
    parse_special: bool = True  # the text may spell control tokens


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for request `id` any more."""

    id: int


Work = Chat | Complete | Embed | Tokenize  # what is answered
Request = Load | Work | Cancel

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
    sees: bool = False  # takes pictures
    bos_token: str | None = None  # how it is spelt; None: there is none
    eos_token: str | None = None
    pad_token: str | None = None
    adds_bos: bool = False  # in front of each prompt


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine is doing: sent about once a second while it works, and when it is done."""

    n_running: int  # sequences
    n_waiting: int
    n_cells: int  # tokens that memory can hold; sequences, if it has a state for each
    n_cells_used: int  # by sequences that run
    n_cells_idle: int  # by finished ones, to begin from
    n_bytes_parked: int  # outside of the cells, by finished ones
    n_steps: int
    step_s: float  # sum over all steps
    steps_within: tuple[int, ...]  # steps that took at most STEP_BOUNDS_S[i]


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the server's log."""

    level: Literal["debug", "info", "warning"]
    text: str


STEP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded, and trying again would not help."""

    message: str


@dataclass(frozen=True, slots=True)
class Outdated:
    """A file of the model was written to: what is loaded is worth nothing, and the worker ends."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """The exact text that the model receives, for those who watch the log stream."""

    id: int
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Returned:
    """The exact text that the model returned, for those who watch the log stream."""

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
    cache: str = ""  # for those who watch: how many, and why not more


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be read and generated: the end of a choice of a dry run, or of a Tokenize."""

    id: int
    index: int
    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]  # of each token
    n_cached: int  # prompt tokens that are in memory now
    grammar: str | None  # GBNF that the answer would be held to


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
class CallDelta:
    """More of a tool call: its id and name with the first piece, its arguments in pieces."""

    number: int  # among the calls of its choice, from 0
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """More of a choice: whole characters, no part of a stop string."""

    id: int
    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice is complete. `n_completion` counts every sampled token, the end token too."""

    id: int
    index: int
    reason: Literal["stop", "length", "tool_calls"]
    n_completion: int
    cause: Cause = "end_token"
    n_reasoning: int = 0  # those of them that are reasoning
    stop_string: str | None = None  # the one that the text came to


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
    message: str  # of a PromptTooLong, its advice
    param: str | None = None
    tokens: tuple[int, int] | None = None  # those of a PromptTooLong


# Those with an id, of one request.
ReplyEvent = (
    Prompted
    | Returned
    | Queued
    | Planned
    | Started
    | Reading
    | Delta
    | Finished
    | Embedded
    | Failed
)
Event = Loading | Ready | EngineState | Note | LoadFailed | Outdated | ReplyEvent
