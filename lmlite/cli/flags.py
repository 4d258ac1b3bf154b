"""The flags of all commands, as `--help` and the manual show them, and the error of a command.

A new flag is one line here; the command's own file implements it.
"""

import argparse
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from lmlite.messages import CACHE_TYPES
from lmlite.server.api import sampling
from lmlite.server.front.gate import is_host, is_origin
from lmlite.server.front.keys import read_keys
from lmlite.server.front.limits import Limits, parse_size
from lmlite.server.logs import LEVELS
from lmlite.server.models.defaults import MAX_SCALE

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class CommandError(Exception):
    """Ends a command. Carries one sentence for standard error and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def keys_of(given: argparse.Namespace) -> tuple[bytes, ...]:
    """The API keys from --api-key-file and the environment. Raises CommandError."""
    try:
        return read_keys(given.api_key_file)
    except ValueError as err:
        raise CommandError(str(err), 2) from None


@dataclass(frozen=True)
class Flag:
    """One option of a command, as `--help` shows it.

    A model option sets the field of the same name in Load, RopeScaling or ModelOptions.
    """

    name: str  # or two of them, such as "-p/--prompt"
    values: str  # the placeholder, or the choices with "|" between them, or "" for a switch
    help: str
    parse: Callable[[str], Any] = str
    default: str | int | float | None = None
    dest: str | None = None  # the field that the flag sets; None: named like the flag
    repeats: bool = False  # may be given several times; the values are collected in a list

    @property
    def key(self) -> str:
        """The flag's name in a file of settings."""
        return self.name.split("/")[-1].lstrip("-")

    @property
    def attribute(self) -> str:
        """Where argparse puts the value."""
        return self.dest or self.key.replace("-", "_")

    @property
    def is_path(self) -> bool:
        """Whether the value names a file or a folder."""
        return self.values in ("FILE", "DIR", "PATH")

    def read(self, text: str) -> Any:
        """The value that a text stands for. Raises argparse.ArgumentTypeError."""
        choices = self.values.split("|")
        if len(choices) > 1 and text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}")
        return self.parse(text)

    def add_to(self, command: argparse._ActionsContainer) -> None:
        """Declares the option to argparse; its help text includes the default."""
        names = self.name.split("/")
        if not self.values:
            command.add_argument(*names, action="store_true", help=self.help)
            return
        choices = self.values.split("|") if "|" in self.values else None
        command.add_argument(
            *names,
            dest=self.dest,
            action="append" if self.repeats else "store",
            metavar=None if choices else self.values,
            choices=choices,
            type=self.parse,
            default=self.default,
            help=self.help if self.default is None else f"{self.help} (default: %(default)s)",
        )


def _value(
    convert: Callable[[str], Any],
    accepts: Callable[[Any], bool] = lambda _value: True,
    requirement: str = "",
) -> Callable[[str], Any]:
    """Makes a `type` function for argparse.

    It refuses a value if `convert` raises ValueError or `accepts` returns False. The error
    message is `requirement`; if that is empty, it is the message of the ValueError.
    """

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(requirement or str(err)) from None
        if not accepts(value):
            raise argparse.ArgumentTypeError(requirement)
        return value

    return parse


_count = _value(int, lambda n: 1 <= n < 2**31, "must be a whole number of 1 or more")
_port = _value(int, lambda n: 0 <= n < 2**16, "must be from 0 to 65535")
_layers = _value(int, requirement="must be a whole number")
_number = _value(float, math.isfinite, "must be a number")
_factor = _value(float, lambda x: 1e-9 <= x <= 1e9, "must be a number greater than 0")
_inverse = _value(lambda text: 1 / _factor(text))
_seconds = _value(float, lambda x: 0.001 <= x <= 3600, "must be from 0.001 to 3600")
_long = _value(float, lambda x: 0.001 <= x <= 1e9, "must be from 0.001 to 1e9")
_size = _value(parse_size)
_folder = _value(lambda text: text and os.path.realpath(text))
_host = _value(str.lower, is_host, "must be a name such as myserver.lan, without a port")
_name = _value(str, lambda text: bool(text.strip()) and text.isprintable(), "must be a name")
_origin = _value(str, is_origin, "must be as browsers write it, such as https://app.example or "
                 "http://localhost:3000, or chrome-extension://*, null or *")  # fmt: skip
_repository = _value(
    str, lambda text: text.isprintable() and bool(re.fullmatch(r"\w[^/]*/\w[^/]*", text)),
    "must be two names with a slash between them, such as qwen/qwen2.5-0.5b-gguf",
)  # fmt: skip
_kinds = _value(lambda text: tuple(text.split(",")), {"input", "output"}.issuperset,
                "must be input, output or input,output")  # fmt: skip


def _adapter(text: str) -> tuple[str, float]:
    path, _, scale = text.rpartition(":")
    try:
        value = float(scale)
    except ValueError:
        path, value = text, 1.0
    if not (path and abs(value) <= MAX_SCALE):
        raise ValueError(f"must be a file, or FILE:SCALE with a scale of at most {MAX_SCALE:.0f}")
    return path, value


MODEL_FLAG = Flag("-m/--model", "FILE", "the same", dest="more_files", repeats=True)
MAX_HOSTS = 16  # GGML_RPC_MAX_SERVERS


def _hosts(text: str) -> tuple[str, ...]:
    """Raises ValueError."""
    hosts = tuple(text.split(","))
    for each in hosts:
        host, _, port = each.rpartition(":")
        if not is_host(host) or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise ValueError("must be HOST:PORT, with commas between several")
    if len(set(hosts)) != len(hosts) or len(hosts) > MAX_HOSTS:
        raise ValueError(f"must be at most {MAX_HOSTS} different hosts")
    return hosts


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in text.split(","))
    if len(shares) > MAX_HOSTS or not all(0 <= share < 1e9 for share in shares) or not sum(shares):
        raise ValueError
    return shares


SERVE_FLAGS = (
    Flag("--config", "FILE", "settings in TOML, by the names of these flags: port = 8080; a flag "
         "goes before its variable, such as LMLITE_PORT, and that before the file"),
    Flag("--models", "DIR", "serve the models in this folder; each is loaded by the first request "
         "for it; may be repeated (default, if no file is named: $LMLITE_MODELS, else "
         "~/.local/share/lmlite/models)", _folder, dest="folders", repeats=True),
    Flag("--presets", "DIR", "folder of presets, which a request names in its field preset",
         _folder),
    Flag("--no-jit", "", "requests load no model; only `lmlite load` does"),
    Flag("--ttl", "SECONDS", "unload a model that a request has loaded after this long without "
         "requests; a request's ttl overrides it", _long, default=3600),
    Flag("--idle-unload", "SECONDS", "unload the models named here after this long without "
         "requests; the next request loads them again (default: never)", _long),
    Flag("--any-name", "", "take unknown model names for the default model, for programs that "
         "always ask for one of OpenAI's"),
    Flag("--no-manage", "", "clients cannot load, unload or download models"),
    Flag("--allow-download", "", "clients may have models fetched by `lmlite get` into the first "
         "folder of models, which is served also if files are named"),
    Flag("--mmproj", "FILE", "the model's image projector (default: the only mmproj*.gguf beside "
         "the model)", dest="mmproj_path"),
    Flag("--lora", "FILE[:SCALE]", "a LoRA adapter for the model, and its scale for requests that "
         "give none (1); may be repeated", _value(_adapter), dest="loras", repeats=True),
    Flag("--draft", "FILE", "a small model of the same family that proposes tokens, several of "
         "which the model checks at once: the same text, sooner", dest="draft_path"),
    Flag("--draft-tokens", "N", "most tokens to propose at once", _count, default=3,
         dest="n_draft"),
    Flag("--host", "ADDRESS", "address to listen on; an address that other machines can reach "
         "requires an API key; unix:/PATH is a socket file, for its user and group",
         default="localhost"),
    Flag("--port", "N", "port to listen on; 0 picks a free one", _port, default=1234),
    Flag("--api-key-file", "FILE", "accepted API keys, one per line; $LMLITE_API_KEY adds more"),
    Flag("--allow-host", "NAME", "accept requests for this host name, too; may be repeated", _host,
         repeats=True),
    Flag("--cors-origin", "URL", "accept requests from web pages of this origin; "
         "chrome-extension://* stands for a browser's extensions, * for all pages, which requires "
         "an API key; may be repeated", _origin, repeats=True),
    Flag("--alias", "NAME[=FILE]", "a model's name for clients; with several models, of this one; "
         "may be repeated, and replies show the first (default: the file's name)", _name,
         dest="aliases", repeats=True),
    Flag("--ctx", "N", "context size in tokens, shared by all sequences; one sequence gets at most "
         "what the model was trained for (default: that, but at most 4096)", _count, dest="n_ctx"),
    Flag("--rope-scaling", "none|linear|yarn", "stretch the model over more tokens than it was "
         "trained for; the next eight flags mean what they mean to llama.cpp", dest="kind"),
    Flag("--rope-scale", "N", "stretch by this factor (default: enough for --ctx)", _inverse,
         dest="freq_scale"),
    Flag("--rope-freq-base", "N", "RoPE base frequency (default: the model's)", _factor,
         dest="freq_base"),
    Flag("--rope-freq-scale", "N", "RoPE frequency scale: 1/N of --rope-scale", _factor,
         dest="freq_scale"),
    Flag("--yarn-orig-ctx", "N", "context size of the training (default: the model's)", _count),
    Flag("--yarn-ext-factor", "N", "YaRN extrapolation mix (default: the model's)", _number),
    Flag("--yarn-attn-factor", "N", "YaRN attention scale (default: the model's)", _number),
    Flag("--yarn-beta-slow", "N", "YaRN high correction (default: the model's)", _number),
    Flag("--yarn-beta-fast", "N", "YaRN low correction (default: the model's)", _number),
    Flag("--parallel", "N", "sequences that generate at the same time", _count, default=4,
         dest="n_parallel"),
    Flag("--queue", "N", "requests that may wait; further ones get a 503", _count, default=64,
         dest="n_queue"),
    Flag("--threads", "N", "threads of the worker (default: one per core, fewer while other "
         "processes keep the machine busy)", _count, dest="n_threads"),
    Flag("--batch", "N", "most tokens in one step", _count, default=512, dest="n_batch"),
    Flag("--prefill-budget", "SECONDS", "longest step that reads a prompt while other requests are "
         "being answered", _seconds, default=0.25, dest="prefill_budget_s"),
    Flag("--gpu-layers", "N", "layers to put on the GPU; -1 for all", _layers, default=-1,
         dest="n_gpu_layers"),
    Flag("--rpc", "HOST:PORT,...", "place the model's layers on these hosts, on each of which "
         "`lmlite rpc-server` runs", _value(_hosts), dest="hosts"),
    Flag("--tensor-split", "N,N,...", "the hosts' shares of the layers, such as 3,1 (default: by "
         "their memory)", _value(_shares, requirement="must be numbers, such as 3,1, not all 0")),
    Flag("--cache-type-k", "|".join(CACHE_TYPES), "data type of cached keys", default="f16"),
    Flag("--cache-type-v", "|".join(CACHE_TYPES), "data type of cached values; quantized "
         "types need flash attention", default="f16"),
    Flag("--cache-dir", "DIR", "folder that keeps long prompts, so that they need not be read "
         "again after a restart (default: none)", _folder),
    Flag("--cache-size", "SIZE", "most that --cache-dir may hold", _size, default="512M"),
    Flag("--checkpoint-memory", "SIZE", "memory for idle conversations, outside the context",
         _size, default="128M"),
    Flag("--image-memory", "SIZE", "memory for encoded images, so that an image is encoded once",
         _size, default="64M"),
    Flag("--memory", "SIZE", "most memory that the worker may take; caches, then the context, "
         "shrink to fit (default: what the machine has left)", _size),
    Flag("--sandbox", "auto|on|off", "deny the worker network, programs and file writes once its "
         "model is loaded; auto: on, unless the library drives a GPU", default="auto"),
    Flag("--watchdog", "SECONDS", "restart a worker that is silent this long while requests wait",
         _seconds, default=30, dest="watchdog_s"),
    Flag("--grace-seconds", "SECONDS", "after a signal, serve on for so long while /health is 503, "
         "so that load balancers send new requests elsewhere (default: none)", _seconds),
    Flag("--flash-attn", "auto|on|off", "flash attention; auto: on where the model and the device "
         "support it", default="auto"),
    Flag("--chat-template", "FILE", "Jinja file to use in place of the model's own template",
         dest="chat_template_path"),
    Flag("--reasoning-format", "auto|none", "where the model's reasoning goes: auto puts it in "
         "reasoning_content, none leaves it in the content", default="auto"),
    Flag("--reasoning-budget", "N", "tokens of thoughts, unless a request says how many; then they "
         "are ended; 0: none; -1: no limit (default: the model's settings, else -1)",
         _value(int, lambda n: -1 <= n < 2**31, "must be -1 or more")),
    Flag("--reasoning-budget-message", "TEXT", "the last sentence of thoughts that are ended",
         default="I have thought for long enough, so I answer now."),
    Flag("--sampling", "NAME=VALUE,...", "sampling values for requests that give none (default: "
         "the model file's, else llama.cpp's)", _value(sampling.parse_defaults)),
    Flag("--allow-grammar", "", "accept GBNF grammars from clients; trust those clients: a costly "
         "grammar slows everybody down"),
    Flag("--strict", "", "refuse requests that have unknown fields"),
    Flag("--lib", "PATH", "folder of the native libraries (default: $LMLITE_LIB, else the "
         "package's own)"),
    Flag("--log-level", "|".join(LEVELS), "lowest level that standard error shows", default="info"),
    Flag("--log-json", "", "write each line to standard error as a JSON object"),
)  # fmt: skip
RPC_SERVER_FLAGS = (
    Flag("--host", "ADDRESS", "IPv4 address to listen on", default="127.0.0.1"),
    Flag("--port", "N", "port to listen on; 0 picks a free one", _port, default=50052),
    Flag("--threads", "N", "threads (default: one per core)", _count, dest="n_threads"),
    Flag("--lib", "PATH", "folder of the native libraries (default: $LMLITE_LIB, else the "
         "package's own)"),
)  # fmt: skip
CLIENT_FLAGS = (
    Flag("--url", "URL", "address of the server, or unix:/PATH", default="http://127.0.0.1:1234"),
    Flag("--api-key-file", "FILE", "send the first key of this file (default: that of "
         "$LMLITE_API_KEY)"),
)  # fmt: skip
_JSON = Flag("--json", "", "print JSON")
_MODELS = Flag("--models", "DIR", "folder of models (default: $LMLITE_MODELS, else "
               "~/.local/share/lmlite/models)", _folder, dest="folder")  # fmt: skip
VERSION_FLAGS = (_JSON,)
LS_FLAGS = (
    Flag("--llm", "", "only models that generate text"),
    Flag("--embedding", "", "only models that embed texts"),
    _JSON,
    Flag("--models", "DIR", "list the models of this folder, and ask no server", _folder,
         dest="folder"),
    *CLIENT_FLAGS,
)  # fmt: skip
PS_FLAGS = STATUS_FLAGS = (_JSON, *CLIENT_FLAGS)
MCP_FLAGS = CLIENT_FLAGS
LOAD_FLAGS = (
    Flag("--ctx", "N", "context size in tokens, shared by all sequences", _count, dest="n_ctx"),
    Flag("--ttl", "SECONDS", "unload the model after this long without requests (default: never)",
         _count),
    Flag("--identifier", "ID", "a further name for the model while it is loaded", _name),
    Flag("--gpu-layers", "N", "layers to put on the GPU; -1 for all", _layers,
         dest="n_gpu_layers"),
    Flag("--parallel", "N", "sequences that generate at the same time", _count,
         dest="n_parallel"),
    Flag("--estimate-only", "", "load nothing; tell how much memory it would take"),
    _MODELS,
    *CLIENT_FLAGS,
)  # fmt: skip
IMPORT_FLAGS = (
    Flag("--copy", "", "copy the file; this is the default"),
    Flag("--move", "", "move the file"),
    Flag("--link", "", "make a hard link, which takes no space"),
    Flag("--symlink", "", "make a symbolic link"),
    Flag("--user-repo", "USER/REPO", "put it into this folder, so that its name is USER/...",
         _repository),
    Flag("--dry-run", "", "only say what would be done"),
    _MODELS,
)  # fmt: skip
RM_FLAGS = (Flag("-y/--yes", "", "do not ask"), _MODELS, *CLIENT_FLAGS)
UNLOAD_FLAGS = (Flag("--all", "", "all models"), *CLIENT_FLAGS)
GET_FLAGS = (
    _MODELS,
    Flag("--endpoint", "URL", "ask this server in place of https://huggingface.co (default: "
         "$HF_ENDPOINT)"),
    Flag("--quiet", "", "print only the model's path"),
    Flag("--json", "", "print one JSON object per line"),
)  # fmt: skip
LOG_STREAM_FLAGS = (
    Flag("--source", "model|server", "what to watch: the model's inputs and outputs, or the "
         "server's log", default="model"),
    Flag("--filter", "KINDS", "what to show of the model: input, output or both", _kinds,
         default="input,output"),
    Flag("--json", "", "print one JSON object per line"),
    Flag("--stats", "", "add token counts, speed and stop reason to each output"),
    *CLIENT_FLAGS,
)  # fmt: skip
CHAT_FLAGS = (
    Flag("-p/--prompt", "TEXT", "print the answer to this text and end; piped input is added to "
         "it"),
    Flag("-s/--system-prompt", "TEXT", "what the model is told first"),
    Flag("--image", "FILE", "put an image into the first message; may be repeated", repeats=True),
    Flag("--reasoning", "auto|off|on|low|medium|high", "whether, or how much, the model thinks "
         "before it answers", default="auto"),
    Flag("--max-tokens", "N", "most tokens of an answer", _count),
    Flag("--temperature", "X", "sampling temperature", _number),
    Flag("--ttl", "SECONDS", "keep a model that is loaded for this conversation so long after its "
         "last answer", _count),
    Flag("--stats", "", "show figures after each answer: tokens, speed, stop reason"),
    *CLIENT_FLAGS,
)  # fmt: skip


def limit_flags() -> list[Flag]:
    """A flag for each limit of the server."""
    flags = []
    for field in fields(Limits):
        bound, name = field.metadata["bound"], f"--{field.name.replace('_', '-')}"
        text = f"{bound.help} (default: {bound.show(field.default)})"
        # Without a default, `limits_of` can tell which limits were given.
        flags.append(Flag(name, bound.unit, text, _value(bound.parse)))
    return flags
