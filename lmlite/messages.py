"""The messages in the pipe: requests from the server to a worker, and events back.

Frozen dataclasses and nothing else. `frames.py` turns them into bytes by reading the annotations
below, so a field's annotation is its format in the pipe. `id` identifies a request of one worker.
`index` identifies one of the request's choices (or inputs), from 0.
"""

from dataclasses import dataclass
from typing import Any, Literal

Prompt = str | tuple[int, ...]  # text, or token ids that the client chose
Scales = tuple[float, ...]  # of each LoRA adapter of the model; (): all are off
Json = dict[str, Any]  # a JSON object as the client sent it
# Data types of cached keys and values, as llama.cpp names them.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
# Samplers in llama.cpp's order, by the names that requests have for them.
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc",
            "temperature")  # fmt: skip
# A reranking model reads each input whole, with attention in both directions; or in pieces.
Ranker = Literal["encoder", "causal"]
# Why a completion ended; the first two are OpenAI's "stop", the others its "length".
Cause = Literal["end_token", "stop_string", "max_tokens", "context_full", "time_limit"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the next token. The defaults are llama.cpp's."""

    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int = 40  # 0: all tokens
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0  # 1: off
    presence_penalty: float = 0.0  # counts completion tokens only, as OpenAI defines it
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None  # None: random
    max_tokens: int | None = None  # None: until the model ends or the context is full
    stop: tuple[str, ...] = ()
    n_logprobs: int | None = None  # alternatives per token; None: send no log-probabilities
    min_tokens: int = 0  # no end token or stop string ends a completion earlier
    ignore_eos: bool = False  # the model never ends a completion
    reasoning_budget_tokens: int = -1  # of thoughts, before they are ended; -1: no limit
    repeat_last_n: int = 64  # tokens that repeat_penalty counts, prompt included; -1: all that fit
    typical_p: float = 1.0  # 1: off
    top_n_sigma: float = -1.0  # 0 or less: off
    xtc_probability: float = 0.0  # 0: off
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0  # 0: off
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64  # as repeat_last_n
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0  # 2: choose by it, in place of samplers that leave out tokens
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: tuple[str, ...] = SAMPLERS  # in the order in which they are applied


# ---- requests: server to worker -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A model file as it was when checked. A file that changes differs in one of these values."""

    path: str
    dev: int
    ino: int
    n_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How to extend a context past its training length, as llama.cpp does. None: the model's."""

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
    """The first request: which model to load and how. None leaves a value to the worker."""

    model_path: str
    parts: tuple[ModelPart, ...] = ()  # all files of the model
    generates: bool = True  # False: an embedding model, or a reranking model
    ranker: Ranker | None = None  # the kind of a reranking model
    lib_path: str | None = None
    n_ctx: int | None = None  # tokens of the context, shared by all sequences
    n_parallel: int = 4  # sequences that generate at the same time
    n_queue: int = 64  # requests that may wait
    max_s: float = 600.0  # limit of a completion, from its first token
    n_threads: int | None = None
    n_batch: int = 512  # tokens of one decode
    prefill_budget_s: float = 0.25  # time for prompts in a step that also generates
    n_gpu_layers: int = -1  # -1: as many as fit
    uses_gpu: bool = False  # whether the library may look for a GPU
    hosts: tuple[str, ...] = ()  # HOST:PORT of RPC servers that hold the layers
    tensor_split: tuple[float, ...] = ()  # their devices' shares; (): by their memory
    cache_type_k: str = "f16"  # one of CACHE_TYPES
    cache_type_v: str = "f16"
    flash_attn: str = "auto"
    rope: RopeScaling = RopeScaling()
    chat_template: str | None = None  # Jinja source; None: the model's own
    reasoning_budget_message: str = ""  # the last sentence of thoughts that reach their budget
    cache_dir: str | None = None  # for checkpoints that survive a restart
    cache_size: int = 512 << 20  # bytes in that folder
    checkpoint_memory: int = 128 << 20  # bytes of checkpoints in memory, outside the context
    mmproj_path: str | None = None  # the projector, which lets the model see images
    image_memory: int = 64 << 20  # bytes for encoded images
    draft_path: str | None = None  # a small model that proposes tokens to this one
    draft_parts: tuple[ModelPart, ...] = ()  # all files of that model
    n_draft: int = 3  # most tokens that it proposes at once
    adapters: tuple[ModelPart, ...] = ()  # the files of LoRA adapters
    sandbox: bool = False  # after loading: no network, no programs, no writes
    embeds: bool = True  # False: a generating model keeps no memory for embeddings
    log_level: Literal["debug", "info", "warning", "error"] = "error"  # of llama.cpp


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made in an earlier turn."""

    id: str
    name: str
    arguments: str  # JSON, as the model wrote it


@dataclass(frozen=True, slots=True)
class Image:
    """An image file in a message; its header has been checked."""

    data: bytes
    at: int  # characters of the message's content before it
    path: str  # its content part's place in the client's request, for errors


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation, its content parts joined."""

    role: str
    content: str
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # the call that this message is the result of
    images: tuple[Image, ...] = ()  # in order


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """A chat's options for the template and for the form of the completion."""

    tools: tuple[Json, ...] = ()  # in OpenAI's format of function tools
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_names: tuple[str, ...] = ()  # the only tools that may be called; (): all
    parallel_tool_calls: bool | None = None  # None: if the template supports it
    json_schema: Json | None = None  # that the completion must match
    thinks: bool = True  # False: no reasoning, if the template can turn it off
    template_kwargs: Json | None = None  # more variables for the template
    separate_reasoning: bool = True  # False: reasoning stays in the content, with its tags
    stop_in_reasoning: bool = False  # stop strings also end the reasoning
    tool_schemas: tuple[Json, ...] = ()  # of each tool's arguments, as the grammar enforces them


@dataclass(frozen=True, slots=True)
class Chat:
    """Render the messages with the chat template, then complete."""

    id: int
    messages: tuple[ChatMessage, ...]
    params: SamplingParams
    n: int = 1
    trace: bool = False  # also send `Prompted` and `Returned`, for the log stream
    options: ChatOptions = ChatOptions()
    dry_run: bool = False  # generate nothing: send a `Planned` for each prompt
    grammar: str | None = None  # GBNF of the whole completion, reasoning included
    truncates: bool = False  # leave out the oldest messages if they do not fit the context
    scales: Scales = ()


@dataclass(frozen=True, slots=True)
class Complete:
    """Complete each prompt as it stands, `n` times; choice index = prompt index * n + i."""

    id: int
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    n: int = 1
    echo: bool = False  # the prompt's text and log-probabilities come first
    trace: bool = False
    dry_run: bool = False
    grammar: str | None = None
    json_schema: Json | None = None  # of each completion
    suffix: str | None = None  # fill the gap between each prompt and this text
    files: tuple[tuple[str, str], ...] = ()  # names and texts, to read before a prompt with a gap
    truncates: bool = False  # leave out what is far from the gap if it does not fit the context
    scales: Scales = ()


@dataclass(frozen=True, slots=True)
class Embed:
    """One vector for each input, or one score with a query."""

    id: int
    inputs: tuple[Prompt, ...]
    dimensions: int | None = None  # how many numbers of the vector to keep; None: all
    query: str | None = None  # score each input by how well it fits this text
    dry_run: bool = False
    scales: Scales = ()


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Turn a text into tokens, or tokens into a text. The answer is a `Planned`."""

    id: int
    prompt: Prompt
    add_special: bool = False  # add the model's BOS and EOS
    parse_special: bool = True  # control tokens spelled in the text become tokens


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop request `id`: its client is gone."""

    id: int


Work = Chat | Complete | Embed | Tokenize  # answered by events
Request = Load | Work | Cancel

# ---- events: worker to server -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loading:
    """How much of the model is loaded."""

    fraction: float  # 0 to 1


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded: the worker takes requests."""

    n_ctx: int  # tokens that one sequence may hold
    n_vocab: int
    n_embd: int
    n_parallel: int
    n_threads: int
    n_gpu_layers: int
    generates: bool  # False: an embedding model
    sees: bool = False  # takes images
    bos_token: str | None = None  # its text; None: the model does not have one
    eos_token: str | None = None
    pad_token: str | None = None
    adds_bos: bool = False  # whether each prompt starts with BOS
    cpu: str = ""  # the kind of processor that the library is compiled for


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine's counts: sent about once a second while it works, and when it stops."""

    n_running: int  # sequences
    n_waiting: int
    n_cells: int  # capacity of memory in tokens; in sequences for a recurrent model
    n_cells_used: int  # by running sequences
    n_cells_idle: int  # by finished sequences, which later prompts may continue
    n_bytes_parked: int  # by finished sequences, outside of the cells
    n_steps: int
    step_s: float  # sum over all steps
    steps_within: tuple[int, ...]  # steps that took at most STEP_BOUNDS_S[i]
    n_drafted: int = 0  # tokens of checked drafts
    n_accepted: int = 0  # those that the model chose, too


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the server's log."""

    level: Literal["debug", "info", "warning"]
    text: str


STEP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; trying again would not help."""

    message: str


@dataclass(frozen=True, slots=True)
class Outdated:
    """A file of the model was changed after it was loaded: the worker ends."""


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An event of one choice of a request, or of one input."""

    id: int
    index: int


@dataclass(frozen=True, slots=True)
class Prompted(ChoiceEvent):
    """The exact text that the model gets, for the log stream."""

    text: str


@dataclass(frozen=True, slots=True)
class Returned(ChoiceEvent):
    """The exact text that the model generated, for the log stream."""

    text: str


@dataclass(frozen=True, slots=True)
class Queued(ChoiceEvent):
    """A choice waits for a free sequence."""

    n_ahead: int  # choices ahead of it in the queue


@dataclass(frozen=True, slots=True)
class Started(ChoiceEvent):
    """The prompt is accepted: any later error is not the client's fault."""

    n_prompt: int
    n_cached: int  # prompt tokens that were in memory already
    cache: str = ""  # for the log stream: how many, and why not more


@dataclass(frozen=True, slots=True)
class Planned(ChoiceEvent):
    """The prompt and the grammar of a choice: the last event of a dry run or a Tokenize."""

    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]  # of each token
    n_cached: int  # prompt tokens that are in memory now
    grammar: str | None  # GBNF of the completion

    @property
    def text(self) -> str:
        """All pieces as one text."""
        return b"".join(self.pieces).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Reading(ChoiceEvent):
    """How much of a long prompt is in memory; sent repeatedly until all of it is."""

    n_read: int
    n_prompt: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural-log probability before any sampler, and the likeliest alternatives."""

    piece: bytes
    logprob: float | None  # None: the first token of a prompt
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """The next part of a tool call's arguments; the first part also has its id and name."""

    number: int  # index of the call within its choice, from 0
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Delta(ChoiceEvent):
    """The next part of a choice: whole characters, without any part of a stop string."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished(ChoiceEvent):
    """A choice is complete."""

    reason: Literal["stop", "length", "tool_calls"]
    n_completion: int  # sampled tokens, the end token included
    cause: Cause = "end_token"
    n_reasoning: int = 0  # completion tokens that are reasoning
    stop_string: str | None = None  # the stop string that ended the choice
    n_drafted: int = 0  # tokens that the draft model proposed
    n_accepted: int = 0  # those that the model chose, too


@dataclass(frozen=True, slots=True)
class Embedded(ChoiceEvent):
    """The vector of one input."""

    n_prompt: int
    vector: bytes  # float32, little endian; a unit vector


@dataclass(frozen=True, slots=True)
class Scored(ChoiceEvent):
    """The score of one input; the higher, the better it fits the query."""

    n_prompt: int  # the first event counts the query, too, if that was read alone
    score: float  # of a reranking model; of others, the cosine of both vectors


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ends with an error."""

    id: int
    kind: str  # a key of `errors.KINDS`
    message: str  # for a PromptTooLong: its advice
    param: str | None = None
    tokens: tuple[int, int] | None = None  # for a PromptTooLong: its tokens


# Events of one request.
ReplyEvent = (Prompted | Returned | Queued | Planned | Started | Reading | Delta | Finished
              | Embedded | Scored | Failed)  # fmt: skip
Event = Loading | Ready | EngineState | Note | LoadFailed | Outdated | ReplyEvent
