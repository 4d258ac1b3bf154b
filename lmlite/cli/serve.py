"""The command line: commands, signals, exit codes.

Exit codes: 0 after a stop that was asked for, 1 when the model or the library cannot be
used, 2 for a wrong command line or an address that cannot be bound. Importing this module,
and `lmlite --help`, load no library and start nothing.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path

import lmlite
from lmlite.cli.flags import LOG_STREAM_FLAGS, SERVE_FLAGS, limit_flags
from lmlite.errors import ModelFileError
from lmlite.gguf import file as gguf
from lmlite.gguf import memory_estimate
from lmlite.gguf import projector as gguf_projector
from lmlite.gguf.file import ModelFile
from lmlite.gguf.memory_estimate import Plan
from lmlite.gguf.projector import Projector
from lmlite.library import drives_a_gpu, library_folder
from lmlite.messages import Load, RopeScaling
from lmlite.server import http
from lmlite.server.api import sampling
from lmlite.server.front import listener, systemd
from lmlite.server.front.gate import ANY_ORIGIN, LOOPBACK_HOSTS, NO_ORIGIN, Gate, is_host
from lmlite.server.front.keys import VARIABLE, read_keys
from lmlite.server.front.limits import Limits
from lmlite.server.logs import Log, printable
from lmlite.server.models import machine_memory
from lmlite.server.models.registry import Registry, ServedModel
from lmlite.server.models.supervisor import SPAWN_FAULTS, Supervisor
from lmlite.server.models.worker_process import WORKER_COMMAND, WorkerProcess
from lmlite.server.server import Server

EMBEDDED_MODEL = Path(lmlite.__file__).parent / "models" / "tiny.gguf"
EMBEDDED_PROJECTOR = EMBEDDED_MODEL.with_name("tiny-mmproj.gguf")
IMAGE_FACTOR = 4  # as large may the body be of a request that may have images, if nothing is said
LAST_WORDS_S = 1.0  # for the errors of answers that did not end in time
LAST_LINES_S = 2.0  # for the log, which may have no reader


class StartError(Exception):
    """What keeps the server from starting, in a sentence; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """The `lmlite` command; returns its exit code."""
    _fill_closed_streams()
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except StartError as err:
        with contextlib.suppress(OSError):  # nobody can be told
            print(f"lmlite: {err}", file=sys.stderr)
        return err.code


def _fill_closed_streams() -> None:
    """Where who started us has closed one, the next file or socket would take its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


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
    manual = commands.add_parser("help", help="read the manual", description="The manual.")
    manual.add_argument("topic", nargs="?", metavar="TOPIC", help="a page (default: their list)")
    manual.set_defaults(run=run_help)
    return top


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model",
        usage="%(prog)s [MODEL.gguf] [FLAG ...]",
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
    limits = serve.add_argument_group("limits", "Each can be raised, none removed.")
    for flag in limit_flags():
        flag.add_to(limits)


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


# ---- lmlite serve --------------------------------------------------------------------------


def run_serve(options: argparse.Namespace) -> int:
    """Serves until a signal comes. Raises StartError."""
    log = Log(options.log_level)
    try:
        return _serve(options, log)
    finally:
        log.flush(LAST_LINES_S)


def _serve(options: argparse.Namespace, log: Log) -> int:
    notifier = systemd.Notifier()
    limits = limits_of(options)
    waiting = _waiting_worker(log)
    try:
        model = served_model(options, limits, log, waiting)
        if model.sees and options.max_body is None:
            limits = replace(limits, max_body=IMAGE_FACTOR * limits.max_body)
        server = _server(options, limits, Registry([model]), log)
    except BaseException:
        if waiting is not None:
            waiting.kill()
            waiting.bury()
        raise
    threading.stack_size(limits.thread_stack)
    stop = _stop_event()
    model.supervisor.start()
    server.start()
    try:
        _show_loading(model, stop)
        if model.supervisor.fault is not None:
            raise StartError(model.supervisor.fault, 1)
        if not stop.is_set():
            log.line("info", f"{model.name} is ready at {server.url}/v1")
            notifier.tell("READY=1")
        stop.wait()
        notifier.tell("STOPPING=1")
        server.drain(limits.drain_seconds)
    finally:
        server.registry.close()
        server.drain(LAST_WORDS_S)
    log.line("info", "stopped")
    return 0


def _waiting_worker(log: Log) -> WorkerProcess | None:
    """One whose Python starts while the model's file is checked here. None: not now."""
    try:
        return WorkerProcess(WORKER_COMMAND, log)
    except SPAWN_FAULTS:
        return None  # the supervisor tries again, and tells why not


def limits_of(options: argparse.Namespace) -> Limits:
    """What the flags of `limit_flags` say; those that were not given leave the default."""
    given = {field.name: getattr(options, field.name) for field in fields(Limits)}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _server(options: argparse.Namespace, limits: Limits, registry: Registry, log: Log) -> Server:
    """A server that listens, and accepts nothing yet. Raises StartError."""
    keys = _keys(options)
    try:
        sockets = systemd.take_sockets()
        sockets = sockets or listener.listen(options.host, options.port, limits.backlog)
    except ValueError as err:
        raise StartError(str(err), 2) from None
    except OSError as err:
        where = f"{options.host}:{options.port}"
        raise StartError(f"cannot listen on {where}: {err.strerror}", 2) from None
    is_open = listener.is_open(sockets)
    origins = frozenset(options.cors_origin or ())
    if not keys:
        _check_that_no_key_is_needed(is_open, origins)
    names = [options.host.lower(), *map(listener.host_of, sockets), *(options.allow_host or ())]
    gate = Gate(
        LOOPBACK_HOSTS.union(filter(is_host, names)),
        any_address=is_open,
        origins=origins,
        keys=keys,
    )
    return Server(
        sockets, http.serve, registry, log, gate=gate, limits=limits, is_strict=options.strict
    )


def _check_that_no_key_is_needed(is_open: bool, origins: frozenset[str]) -> None:
    """Raises StartError where strangers could ask."""
    strangers = ["other machines"] if is_open else []
    if not origins.isdisjoint({NO_ORIGIN, ANY_ORIGIN}):
        strangers.append("all web pages")
    if strangers:
        who = " and ".join(strangers)
        raise StartError(f"{who} would reach this server, so it has to ask for a key: "
                         f"name a file with --api-key-file, or set {VARIABLE}", 2)  # fmt: skip


def _keys(options: argparse.Namespace) -> tuple[bytes, ...]:
    """Those that the command line and the environment name. Raises StartError."""
    try:
        return read_keys(options.api_key_file)
    except ValueError as err:
        raise StartError(str(err), 2) from None


def served_model(
    options: argparse.Namespace, limits: Limits, log: Log, waiting: WorkerProcess | None = None
) -> ServedModel:
    """The model that the command line names, checked, with a supervisor that is not started.

    The supervisor takes over the worker that waits, unless a StartError is raised.
    """
    path = os.path.abspath(options.model or options.model_flag or EMBEDDED_MODEL)
    try:
        file = gguf.read_model_file(path)
        projector = projector_of(options, path)
        given = options.chat_template
        template = Path(given).read_text("utf-8") if given else None
    except ModelFileError as err:
        raise StartError(str(err), 1) from None
    except (OSError, UnicodeDecodeError) as err:
        raise StartError(f"{options.chat_template} cannot be read: {err}", 1) from None
    if file.pooling == "rank":
        raise StartError(f"{Path(path).name} is a reranking model, which has no endpoint here", 1)
    load = _load_of(options, limits, file, projector, template)
    plan = _planned(options, file, load, projector, log)
    defaults = sampling.defaults(
        file.sampling,
        options.sampling or {},
        lambda text: log.line("warning", text),
        separate_reasoning=options.reasoning_format == "auto",
        allows_grammars=options.allow_grammar,
        takes_images=projector is not None,
        limits=limits,
    )
    name, *aliases = dict.fromkeys(options.alias or [printable(Path(path).stem)])
    supervisor = Supervisor(
        plan.load,
        log,
        watchdog_s=options.watchdog,
        file=file,
        projector=projector,
        waiting=waiting,
    )
    return ServedModel(name, file, supervisor, defaults, plan, tuple(aliases))


def _load_of(
    options: argparse.Namespace,
    limits: Limits,
    file: ModelFile,
    projector: Projector | None,
    template: str | None,
) -> Load:
    """What the command line asks of a worker."""
    drives_gpu = drives_a_gpu(options.lib)
    return Load(
        model_path=file.path,
        parts=file.parts,
        generates=not file.embeds_only,
        lib_path=str(library_folder(options.lib).resolve()),  # a worker sees no LMLITE_LIB
        n_ctx=options.ctx,
        n_parallel=options.parallel,
        n_queue=options.queue,
        max_s=limits.max_seconds,
        n_threads=options.threads,
        n_batch=max(options.batch, options.parallel),
        prefill_budget_s=options.prefill_budget,
        n_gpu_layers=options.gpu_layers,
        uses_gpu=drives_gpu and options.gpu_layers != 0,
        cache_type_k=options.cache_type_k,
        cache_type_v=options.cache_type_v,
        flash_attn=options.flash_attn,
        rope=rope_of(options, file.n_ctx_train),
        chat_template=template,
        cache_dir=options.cache_dir and str(Path(options.cache_dir).resolve()),
        cache_size=options.cache_size,
        checkpoint_memory=options.checkpoint_memory,
        mmproj_path=projector.path if projector else None,
        image_memory=options.image_memory,
        sandbox=options.sandbox == "on" or (options.sandbox == "auto" and not drives_gpu),
        log_level="info" if options.log_level == "debug" else "error",
    )


def rope_of(options: argparse.Namespace, n_ctx_train: int) -> RopeScaling:
    """What its flags say; where they name a kind and no scale, one that is enough for --ctx."""
    scale = options.rope_freq_scale
    if scale is None and options.rope_scale is not None:
        scale = 1 / options.rope_scale
    if scale is None and options.rope_scaling in ("linear", "yarn"):
        n_orig = options.yarn_orig_ctx or n_ctx_train
        scale = min(1.0, n_orig / (options.ctx or n_orig))
    return RopeScaling(
        kind=options.rope_scaling,
        freq_base=options.rope_freq_base,
        freq_scale=scale,
        yarn_orig_ctx=options.yarn_orig_ctx,
        yarn_ext_factor=options.yarn_ext_factor,
        yarn_attn_factor=options.yarn_attn_factor,
        yarn_beta_slow=options.yarn_beta_slow,
        yarn_beta_fast=options.yarn_beta_fast,
    )


def _planned(
    options: argparse.Namespace,
    file: ModelFile,
    load: Load,
    projector: Projector | None,
    log: Log,
) -> Plan:
    """What of the Load there is memory for. Raises StartError."""
    # What goes to a GPU's own memory is not known here.
    bound = None if load.uses_gpu else machine_memory.least_bound(options.memory)
    n_allowed, because = (bound.n_bytes, bound.because) if bound else (None, "")
    try:
        plan = memory_estimate.plan(file, load, n_allowed, because, projector)
    except memory_estimate.DoesNotFit as err:
        raise StartError(str(err), 1) from None
    for note in plan.notes:
        log.line("warning", note)
    return plan


def projector_of(options: argparse.Namespace, model_path: str) -> Projector | None:
    """The projector that is named, or found, checked. Raises ModelFileError."""
    path: str | None = options.mmproj
    if path is None and Path(model_path) == EMBEDDED_MODEL:
        path = str(EMBEDDED_PROJECTOR)
    if path is None:
        path = gguf_projector.projector_beside(model_path)
    return gguf_projector.read_projector_file(str(Path(path).resolve())) if path else None


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
    from lmlite.cli import log as log_stream

    show = log_stream.json_lines if options.json else log_stream.text_lines
    keys = _keys(options)
    try:
        records = log_stream.attach(options.url, options.source, keys[0] if keys else None)
        print(f"watching {options.url}", file=sys.stderr, flush=True)
        for record in records:
            if log_stream.is_wanted(record, options.filter):
                print(show(record, options.stats), flush=True)
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError) as err:
        raise StartError(f"no log stream at {options.url}: {err}", 1) from None
    return 0


# ---- lmlite help ---------------------------------------------------------------------------


def run_help(options: argparse.Namespace) -> int:
    """Prints a page of the manual, or the list of all. Raises StartError."""
    folder = resources.files("lmlite") / "manual"
    pages = {page.name.removesuffix(".md"): page for page in folder.iterdir()}
    if options.topic is None:
        for topic, page in sorted(pages.items()):
            print(f"{topic:20}{page.read_text('utf-8').splitlines()[0].lstrip('# ')}")
    elif options.topic in pages:
        print(pages[options.topic].read_text("utf-8"), end="")
    else:
        message = f"there is no page on {options.topic}; lmlite help lists the topics"
        raise StartError(message, 2)
    return 0
