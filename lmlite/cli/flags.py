"""The flags of each command, as `--help` and the manual show them, and what their values may be.

Adding one is a line here. Knows nothing of what they do.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields

from lmlite.server.api import sampling
from lmlite.server.front.gate import is_host, is_origin
from lmlite.server.front.limits import Limits, parse_size
from lmlite.server.logs import LEVELS

CACHE_TYPES = "f32|f16|bf16|q8_0|q5_1|q5_0|q4_1|q4_0|iq4_nl"


@dataclass(frozen=True)
class Flag:
    """One option of a command, as `--help` shows it."""

    name: str
    values: str  # the placeholder, or the choices with "|" between them, or "" for a switch
    default: str | int | float | None
    help: str
    parse: Callable[[str], object] = str
    repeats: bool = False  # its values are a list

    def add_to(self, command: "argparse._ActionsContainer") -> None:
        """Declares the option; the default is part of its help."""
        text = self.help if self.default is None else f"{self.help} (default: %(default)s)"
        if not self.values:
            command.add_argument(self.name, action="store_true", help=self.help)
        elif "|" in self.values:
            choices = self.values.split("|")
            command.add_argument(self.name, choices=choices, default=self.default, help=text)
        elif self.repeats:
            command.add_argument(
                self.name, metavar=self.values, type=self.parse, action="append", help=text
            )
        else:
            command.add_argument(
                self.name, metavar=self.values, type=self.parse, default=self.default, help=text
            )


def _count(text: str) -> int:
    number = int(text)  # a ValueError is argparse's to report
    if not 1 <= number < 2**31:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _in_words(parse: Callable[[str], object]) -> Callable[[str], object]:
    """The same; argparse then shows what the ValueError says."""

    def parsed(text: str) -> object:
        try:
            return parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return parsed


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.001 <= number <= 3600:
        raise argparse.ArgumentTypeError("must be from 0.001 to 3600")
    return number


def _factor(text: str) -> float:
    number = float(text)
    if not 1e-9 <= number <= 1e9:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return number


def _host(text: str) -> str:
    if not is_host(text):
        raise argparse.ArgumentTypeError("must be a name such as myserver.lan, without a port")
    return text.lower()


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError("must be a name")
    return text


def _origin(text: str) -> str:
    if not is_origin(text):
        raise argparse.ArgumentTypeError(
            "must be as browsers write it, such as https://app.example or http://localhost:3000, "
            "or chrome-extension://*, null or *"
        )
    return text


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if not set(kinds) <= {"input", "output"}:
        raise argparse.ArgumentTypeError("must be input, output or input,output")
    return kinds


SERVE_FLAGS = (
    Flag("--mmproj", "FILE", None, "the model's projector, with which it sees images (default: the "
         "only mmproj*.gguf beside the model)"),
    Flag("--host", "ADDRESS", "localhost", "address to listen on; one that other machines reach "
         "needs a key"),
    Flag("--port", "N", 1234, "port to listen on, 0 for any free one", _port),
    Flag("--api-key-file", "FILE", None, "keys, one a line, of which a client has to have one; "
         "$LMLITE_API_KEY holds further ones"),
    Flag("--allow-host", "NAME", None, "a further name that this server has for clients; may be "
         "given again", _host, repeats=True),
    Flag("--cors-origin", "URL", None, "web pages from there may use this server, extensions of a "
         "browser by chrome-extension://*, and with a key all by *; may be given again", _origin,
         repeats=True),
    Flag("--alias", "NAME", None, "the model's name for clients; may be given again, the first is "
         "in answers (default: its file's name)", _name, repeats=True),
    Flag("--ctx", "N", None, "tokens of memory, shared by all sequences, of which each has at most "
         "what the model was trained for (default: that, at most 4096)", _count),
    Flag("--rope-scaling", "none|linear|yarn", None, "stretches the model over more tokens than it "
         "was trained for; this and what follows mean what they mean to llama.cpp"),
    Flag("--rope-scale", "N", None, "how many times as many (default: what --ctx asks for)",
         _factor),
    Flag("--rope-freq-base", "N", None, "base of the frequencies (default: the model's)", _factor),
    Flag("--rope-freq-scale", "N", None, "1/N of --rope-scale", _factor),
    Flag("--yarn-orig-ctx", "N", None, "tokens that it was trained for (default: the model's)",
         _count),
    Flag("--yarn-ext-factor", "N", None, "how much is extrapolated (default: the model's)", float),
    Flag("--yarn-attn-factor", "N", None, "scale of attention (default: the model's)", float),
    Flag("--yarn-beta-slow", "N", None, "the high correction (default: the model's)", float),
    Flag("--yarn-beta-fast", "N", None, "the low correction (default: the model's)", float),
    Flag("--parallel", "N", 4, "sequences that generate at the same time", _count),
    Flag("--queue", "N", 64, "requests that may wait for them; further ones get a 503", _count),
    Flag("--threads", "N", None, "threads of the worker (default: one for each core, "
         "fewer while other processes keep the machine busy)", _count),
    Flag("--batch", "N", 512, "tokens of one step at most", _count),
    Flag("--prefill-budget", "SECONDS", 0.25, "that a step may take which reads a prompt while "
         "somebody is being answered", _seconds),
    Flag("--gpu-layers", "N", -1, "layers that go to the GPU, -1 for all", int),
    Flag("--cache-type-k", CACHE_TYPES, "f16", "how memory keeps keys"),
    Flag("--cache-type-v", CACHE_TYPES, "f16", "how memory keeps values; all but the first three "
         "need flash attention"),
    Flag("--cache-dir", "DIR", None, "folder that keeps long prompts which were read, so that "
         "they are not read again after a restart (default: none)"),
    Flag("--cache-size", "SIZE", "512M", "what that folder may hold", _in_words(parse_size)),
    Flag("--checkpoint-memory", "SIZE", "128M", "outside of the context, for conversations that "
         "nobody goes on with just now", _in_words(parse_size)),
    Flag("--image-memory", "SIZE", "64M", "for images that were encoded, so that they are not "
         "again", _in_words(parse_size)),
    Flag("--memory", "SIZE", None, "that the worker may take; what saves time and then the "
         "context give way to it (default: what the machine has left)", _in_words(parse_size)),
    Flag("--sandbox", "auto|on|off", "auto", "no network, programs and writes for the worker once "
         "its model is loaded; auto leaves it off for a library that drives a GPU"),
    Flag("--watchdog", "SECONDS", 30.0, "that the worker may owe an answer without a sign of life; "
         "then another one takes its place", _seconds),
    Flag("--flash-attn", "auto|on|off", "auto", "flash attention; auto: where the model and "
         "the device have it"),
    Flag("--chat-template", "FILE", None, "Jinja file to use in place of the model's own template"),
    Flag("--reasoning-format", "auto|none", "auto", "where thoughts go: auto puts them in "
         "reasoning_content, none leaves them in the content"),
    Flag("--sampling", "NAME=VALUE,...", None, "for requests that say nothing (default: the model "
         "file's, else llama.cpp's)", _in_words(sampling.parse_defaults)),
    Flag("--allow-grammar", "", None, "take grammars in GBNF from clients, who have to be trusted: "
         "one may be slow for everybody"),
    Flag("--strict", "", None, "refuse requests with fields that nobody here knows"),
    Flag("--lib", "PATH", None, "folder of the native libraries (default: $LMLITE_LIB, else the "
         "package's own)"),
    Flag("--log-level", "|".join(LEVELS), "info", "what standard error shows"),
)  # fmt: skip
LOG_STREAM_FLAGS = (
    Flag("--source", "model|server", "model", "what to watch"),
    Flag("--filter", "KINDS", "input,output", "input, output or both, of the source model", _kinds),
    Flag("--json", "", None, "one JSON object per line"),
    Flag("--stats", "", None, "with each output its tokens, its speed and why it ended"),
    Flag("--url", "URL", "http://127.0.0.1:1234", "the server"),
    Flag("--api-key-file", "FILE", None, "whose first key is sent; else that of $LMLITE_API_KEY"),
)


def limit_flags() -> list[Flag]:
    """A flag for each limit of the server."""
    flags = []
    for field in fields(Limits):
        bound, name = field.metadata["bound"], f"--{field.name.replace('_', '-')}"
        text = f"{bound.help} (default: {bound.show(field.default)})"
        # None, so that one that is given is told from one that is left out.
        flags.append(Flag(name, bound.unit, None, text, _in_words(bound.parse)))
    return flags
