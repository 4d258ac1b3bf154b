"""The command line: arguments, signals, exit codes.

Exit codes: 0 after a stop that was asked for, 1 when the model or the library cannot be
used, 2 for a wrong command line or an address that cannot be bound. Importing this module,
and `lmlite --help`, load no library and start nothing.
"""

import argparse
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmlite
from lmlite import gguf, gguf_projector, memory_estimate
from lmlite.errors import ModelFileError
from lmlite.gguf import ModelFile
from lmlite.library import drives_a_gpu
from lmlite.memory_estimate import Plan
from lmlite.messages import Load
from lmlite.server import log_stream, machine_memory, sampling
from lmlite.server.http import Handler
from lmlite.server.listener import Server
from lmlite.server.logs import LEVELS, Log
from lmlite.server.registry import Registry, ServedModel
from lmlite.server.supervisor import Supervisor

EMBEDDED_MODEL = Path(__file__).parent / "models" / "tiny.gguf"
EMBEDDED_PROJECTOR = EMBEDDED_MODEL.with_name("tiny-mmproj.gguf")
CACHE_TYPES = "f32|f16|bf16|q8_0|q5_1|q5_0|q4_1|q4_0|iq4_nl"
DRAIN_S = 10.0  # how long running answers may take to end after a signal
LAST_WORDS_S = 1.0  # and for the errors of those that did not


class StartError(Exception):
    """What keeps the server from starting, in a sentence; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """The `lmlite` command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except StartError as err:
        print(f"lmlite: {err}", file=sys.stderr)
        return err.code


# ---- arguments -----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="lmlite",
        description="Serve a GGUF model behind the OpenAI API.",
    )
    top.add_argument("--version", action="version", version=f"lmlite {lmlite.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_log(commands)
    return top


@dataclass(frozen=True)
class Flag:
    """One option of a command, as `--help` shows it."""

    name: str
    values: str  # the placeholder, or the choices with "|" between them, or "" for a switch
    default: str | int | float | None
    help: str
    parse: Callable[[str], object] = str

    def add_to(self, command: argparse.ArgumentParser) -> None:
        """Declares the option; the default is part of its help."""
        text = self.help if self.default is None else f"{self.help} (default: %(default)s)"
        if not self.values:
            command.add_argument(self.name, action="store_true", help=self.help)
        elif "|" in self.values:
            choices = self.values.split("|")
            command.add_argument(self.name, choices=choices, default=self.default, help=text)
        else:
            command.add_argument(
                self.name, metavar=self.values, type=self.parse, default=self.default, help=text
            )


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model",
        description="Serve a model at http://HOST:PORT/v1 until a signal comes.",
    )
    serve.set_defaults(run=run_serve)
    named = serve.add_mutually_exclusive_group()
    named.add_argument(
        "model", nargs="?", metavar="MODEL.gguf", help="model file (default: the embedded one)"
    )
    named.add_argument("-m", "--model", dest="model_flag", metavar="FILE", help="the same")
    for flag in SERVE_FLAGS:
        flag.add_to(serve)


def _add_log(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    log = commands.add_parser("log", help="watch a running server", description="Logs.")
    kinds = log.add_subparsers(title="commands", metavar="COMMAND", required=True)
    stream = kinds.add_parser(
        "stream",
        help="show what models receive and return, as it happens",
        description="Show the exact text that models receive and return, as it happens.",
    )
    stream.set_defaults(run=run_log_stream)
    for flag in LOG_STREAM_FLAGS:
        flag.add_to(stream)


def _count(text: str) -> int:
    number = int(text)  # a ValueError is argparse's to report
    if not 1 <= number < 2**31:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([KMG]?)", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError("must be a number of bytes, such as 300M or 2G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.001 <= number <= 3600:
        raise argparse.ArgumentTypeError("must be from 0.001 to 3600")
    return number


def _sampling(text: str) -> dict[str, float]:
    try:
        return sampling.parse_defaults(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from None


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return number


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if not set(kinds) <= {"input", "output"}:
        raise argparse.ArgumentTypeError("must be input, output or input,output")
    return kinds


SERVE_FLAGS = (
    Flag("--mmproj", "FILE", None, "the model's projector, with which it sees images (default: the "
         "only mmproj*.gguf beside the model)"),
    Flag("--host", "ADDRESS", "127.0.0.1", "address to listen on"),
    Flag("--port", "N", 1234, "port to listen on, 0 for any free one", _port),
    Flag("--alias", "NAME", None, "the model's name for clients (default: its file's name)"),
    Flag("--ctx", "N", None, "tokens of memory, shared by all sequences (default: what the model "
         "was trained for, at most 4096)", _count),
    Flag("--parallel", "N", 4, "sequences that generate at the same time", _count),
    Flag("--queue", "N", 64, "requests that may wait for them; further ones get a 503", _count),
    Flag("--threads", "N", None, "threads of the worker (default: one for each core, "
         "fewer while other processes keep the machine busy)", _count),
    Flag("--batch", "N", 512, "tokens of one step at most", _count),
    Flag("--prefill-budget", "SECONDS", 0.2, "that a step may take which reads a prompt while "
         "somebody is being answered", _seconds),
    Flag("--gpu-layers", "N", -1, "layers that go to the GPU, -1 for all", int),
    Flag("--cache-type-k", CACHE_TYPES, "f16", "how memory keeps keys"),
    Flag("--cache-type-v", CACHE_TYPES, "f16", "how memory keeps values; all but the first three "
         "need flash attention"),
    Flag("--cache-dir", "DIR", None, "folder that keeps long prompts which were read, so that "
         "they are not read again after a restart (default: none)"),
    Flag("--cache-size", "SIZE", "512M", "what that folder may hold", _size),
    Flag("--checkpoint-memory", "SIZE", "128M", "outside of the context, for conversations that "
         "nobody goes on with just now", _size),
    Flag("--image-memory", "SIZE", "64M", "for images that were encoded, so that they are not "
         "again", _size),
    Flag("--memory", "SIZE", None, "that the worker may take; checkpoints and then the context "
         "give way to it (default: what the machine has left)", _size),
    Flag("--watchdog", "SECONDS", 30.0, "that the worker may owe an answer without a sign of life; "
         "then another one takes its place", _seconds),
    Flag("--flash-attn", "auto|on|off", "auto", "flash attention"),
    Flag("--chat-template", "FILE", None, "Jinja file to use in place of the model's own template"),
    Flag("--reasoning-format", "auto|none", "auto", "where thoughts go: auto puts them in "
         "reasoning_content, none leaves them in the content"),
    Flag("--sampling", "NAME=VALUE,...", None, "for requests that say nothing (default: the model "
         "file's, else llama.cpp's)", _sampling),
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
)


# ---- lmlite serve --------------------------------------------------------------------------


def run_serve(options: argparse.Namespace) -> int:
    """Serves until a signal comes. Raises StartError."""
    log = Log(options.log_level)
    model = served_model(options, log)
    registry = Registry([model])
    try:
        address = options.host, options.port
        server = Server(address, Handler, registry, log, is_strict=options.strict)
    except OSError as err:
        where = f"{options.host}:{options.port}"
        raise StartError(f"cannot listen on {where}: {err.strerror}", 2) from None
    stop = _stop_event()
    if server.is_open:
        log.line("warning", f"whoever reaches {server.url} can use this server: it asks for no key")
    model.supervisor.start()
    threading.Thread(target=server.serve_forever, name="accept", daemon=True).start()
    try:
        _show_loading(model, stop)
        if model.supervisor.fault is not None:
            raise StartError(model.supervisor.fault, 1)
        if not stop.is_set():
            log.line("info", f"{model.name} is ready at {server.url}/v1")
        stop.wait()
        server.drain(DRAIN_S)
    finally:
        registry.close()
        server.drain(LAST_WORDS_S)
        server.close()
    log.line("info", "stopped")
    return 0


def served_model(options: argparse.Namespace, log: Log) -> ServedModel:
    """The model that the command line names, checked, with a supervisor that is not started."""
    path = os.path.abspath(options.model or options.model_flag or EMBEDDED_MODEL)
    try:
        file = gguf.read_model_file(path)
        projector = projector_of(options, path)
        template = Path(options.chat_template).read_text() if options.chat_template else None
    except ModelFileError as err:
        raise StartError(str(err), 1) from None
    except (OSError, UnicodeDecodeError) as err:
        raise StartError(f"{options.chat_template} cannot be read: {err}", 1) from None
    if file.pooling == "rank":
        raise StartError(f"{Path(path).name} is a reranking model, which has no endpoint here", 1)
    load = Load(
        model_path=path,
        parts=file.parts,
        generates=not file.embeds_only,
        lib_path=options.lib,
        n_ctx=options.ctx,
        n_parallel=options.parallel,
        n_queue=options.queue,
        n_threads=options.threads,
        n_batch=max(options.batch, options.parallel),
        prefill_budget_s=options.prefill_budget,
        n_gpu_layers=options.gpu_layers,
        cache_type_k=options.cache_type_k,
        cache_type_v=options.cache_type_v,
        flash_attn=options.flash_attn,
        chat_template=template,
        cache_dir=options.cache_dir and str(Path(options.cache_dir).resolve()),
        cache_size=options.cache_size,
        checkpoint_memory=options.checkpoint_memory,
        mmproj_path=projector,
        image_memory=options.image_memory,
        log_level="info" if options.log_level == "debug" else "error",
    )
    plan = _planned(options, file, load, log)
    defaults = sampling.defaults(
        file.sampling,
        options.sampling or {},
        lambda text: log.line("warning", text),
        separate_reasoning=options.reasoning_format == "auto",
        allows_grammars=options.allow_grammar,
        takes_images=projector is not None,
    )
    name = options.alias or Path(path).stem
    supervisor = Supervisor(plan.load, log, watchdog_s=options.watchdog, file=file)
    return ServedModel(name, file, supervisor, defaults, plan)


def _planned(options: argparse.Namespace, file: ModelFile, load: Load, log: Log) -> Plan:
    """What of the Load there is memory for. Raises StartError."""
    bound = machine_memory.least_bound(options.memory)
    # What goes to a GPU's own memory is not known here.
    if bound is None or (options.gpu_layers and drives_a_gpu(options.lib)):
        return memory_estimate.plan(file, load, None)
    try:
        plan = memory_estimate.plan(file, load, bound.n_bytes, bound.because)
    except memory_estimate.DoesNotFit as err:
        raise StartError(str(err), 1) from None
    for note in plan.notes:
        log.line("warning", note)
    return plan


def projector_of(options: argparse.Namespace, model_path: str) -> str | None:
    """The projector that is named, or found, checked. Raises ModelFileError."""
    path: str | None = options.mmproj
    if path is None and Path(model_path) == EMBEDDED_MODEL and EMBEDDED_PROJECTOR.is_file():
        path = str(EMBEDDED_PROJECTOR)
    if path is None:
        path = gguf_projector.projector_beside(model_path)
    if path is None:
        return None
    gguf_projector.check_projector_file(path)
    return str(Path(path).resolve())


def _stop_event() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; the second ends the process at once.

    The kernel may hand a signal to any thread, and Python runs handlers in the main one only
    when that wakes up. So the handlers do nothing, and a thread reads the byte that Python's C
    code writes to a socket, whichever thread was hit.
    """
    stop = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        with reader, writer:
            reader.recv(1)
            stop.set()
            reader.recv(1)
            os._exit(1)

    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    return stop


def _show_loading(model: ServedModel, stop: threading.Event) -> None:
    """Waits until the model is loaded or cannot be; draws a bar on a terminal meanwhile."""
    supervisor = model.supervisor
    began_s = time.monotonic()
    while not (supervisor.ready or supervisor.fault or stop.is_set()):
        supervisor.wait_until_settled(0.1)
        if sys.stderr.isatty():
            done = int(supervisor.fraction_loaded * 30)
            bar = "#" * done + "." * (30 - done)
            elapsed = f"{time.monotonic() - began_s:.1f} s"
            print(f"\rloading {model.name} [{bar}] {elapsed} ", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)


# ---- lmlite log stream ---------------------------------------------------------------------


def run_log_stream(options: argparse.Namespace) -> int:
    """Prints records until the server ends or the user has seen enough. Raises StartError."""
    show = log_stream.json_lines if options.json else log_stream.text_lines
    try:
        records = log_stream.attach(options.url, options.source)
        print(f"watching {options.url}", file=sys.stderr, flush=True)
        for record in records:
            if log_stream.is_wanted(record, options.filter):
                print(show(record, options.stats), flush=True)
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError) as err:
        raise StartError(f"no log stream at {options.url}: {err}", 1) from None
    return 0
