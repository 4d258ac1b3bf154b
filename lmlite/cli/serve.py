"""`lmlite serve`: turns flags into a server and runs it until SIGINT or SIGTERM."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lmlite.cli.configuration import configured
from lmlite.cli.flags import (
    MODEL_FLAG,
    SERVE_FLAGS,
    CommandError,
    Commands,
    keys_of,
    limit_flags,
)
from lmlite.errors import ModelFailed, ModelFileError
from lmlite.gguf.file import ModelFile
from lmlite.library import RPC_NAME, drives_a_gpu, library_folder, reaches_hosts
from lmlite.messages import Load, RopeScaling
from lmlite.server.api import sampling
from lmlite.server.front import sockets as listening
from lmlite.server.front import systemd
from lmlite.server.front.gate import ANY_ORIGIN, LOOPBACK_HOSTS, NO_ORIGIN, Gate, is_host
from lmlite.server.front.keys import VARIABLE
from lmlite.server.front.limits import Limits
from lmlite.server.front.parent import Parent
from lmlite.server.logs import Log
from lmlite.server.models.catalog import Catalog, models_folder
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.downloads import Downloads
from lmlite.server.models.life import Failed, Loading
from lmlite.server.models.loading import EMBEDDED_MODEL, ModelOptions, Shelf
from lmlite.server.models.registry import Registry
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.supervisor import SPAWN_FAULTS
from lmlite.server.models.worker_process import WORKER_COMMAND, WorkerProcess

if TYPE_CHECKING:
    from lmlite.server.server import Server

IMAGE_FACTOR = 4  # multiplies the default of --max-body for a model that takes images
LOOK_S = 0.1  # between two looks at models that are being loaded
LAST_WORDS_S = 1.0  # time to send errors to replies that were cut off by the stop
LAST_LINES_S = 2.0  # time to write the last log lines; nobody may be reading them

T = TypeVar("T", Limits, Load, ModelOptions, RopeScaling)


def add_to(commands: Commands) -> None:
    """Declares the command."""
    serve = commands.add_parser(
        "serve",
        help="serve models",
        usage="%(prog)s [MODEL.gguf ...] [FLAG ...]",
        description="Serve models at http://HOST:PORT/v1 until a signal comes.",
    )
    serve.set_defaults(run=run)
    declare(serve)


def declare(serve: argparse.ArgumentParser) -> None:
    """Declares the models and the flags."""
    serve.add_argument(
        "files",
        nargs="*",
        metavar="MODEL.gguf",
        help="model files, which are loaded at once (default: the folder of --models, else the "
        "embedded model)",
    )
    for flag in (MODEL_FLAG, *SERVE_FLAGS):
        flag.add_to(serve)
    limits = serve.add_argument_group("limits", "Each limit can be raised, and none removed.")
    for flag in limit_flags():
        flag.add_to(limits)


def parsed(arguments: list[str], name: str = "lmlite serve") -> argparse.Namespace:
    """The arguments with all that variables and a file add to them. Raises CommandError."""
    parser = argparse.ArgumentParser(name, "%(prog)s [MODEL.gguf ...] [FLAG ...]")
    declare(parser)
    return configured(parser, arguments)


def run(given: argparse.Namespace) -> int:
    """Serves until a signal comes. Raises CommandError."""
    given = argparse.Namespace(worker=given.worker, **vars(parsed(given.words)))
    log = Log(given.log_level, is_json=given.log_json)
    try:
        with contextlib.ExitStack() as leases:
            server = _prepared(given, log, leases)
            stop = _stop_event()
            server.start()
            try:
                _serve_until(stop, server, leases, log, given)
            finally:
                server.registry.close()
                server.drain(LAST_WORDS_S)
        log.line("info", "stopped")
    except CommandError as err:
        if not given.log_json:
            raise
        log.line("error", str(err))
        return err.code
    finally:
        log.flush(LAST_LINES_S)
    return 0


def _prepared(given: argparse.Namespace, log: Log, leases: contextlib.ExitStack) -> "Server":
    """A server that listens but does not accept yet. The named models are being loaded.

    `leases` hold these models. Raises CommandError.
    """
    limits = limits_of(given)
    threading.stack_size(limits.thread_stack)
    shelf = _shelf(given, limits, log)
    leases.callback(shelf.close)
    registry = Registry(
        log=log,
        supply=shelf,
        is_jit=not given.no_jit,
        ttl_s=given.ttl,
        takes_any_name=given.any_name,
        may_manage=not given.no_manage,
        downloads=Downloads(Path(_folders(given)[0])) if given.allow_download else None,
        presets=Path(given.presets) if given.presets else None,
    )
    try:
        registry.start()
        _begin_to_load(shelf, registry, leases)
        if given.max_body is None and shelf.sees:
            limits = replace(limits, max_body=IMAGE_FACTOR * limits.max_body)
        return _server(given, limits, registry, log)
    except BaseException:
        registry.close()
        raise


def _begin_to_load(shelf: Shelf, registry: Registry, leases: contextlib.ExitStack) -> None:
    """Begins to load the models that the command line names, as many as fit. Raises CommandError.

    A single one stays. If there are several, any of them leaves when another needs its memory.
    """
    try:
        models = shelf.named()
        for model in models:
            is_single = len(models) == 1
            if is_single or registry.has_room_for(model):
                lease = registry.lease(model, model.idle_s, stays=is_single)
                held = leases.enter_context(lease)
                while held.supervisor(LOOK_S) is None:
                    pass
    except (ModelFileError, ModelFailed) as err:
        raise CommandError(str(err), 1) from None


def _serve_until(
    stop: threading.Event,
    server: "Server",
    leases: contextlib.ExitStack,
    log: Log,
    given: argparse.Namespace,
) -> None:
    notifier, parent = systemd.Notifier(), Parent()
    parent.watch(stop.set)
    loaded = server.registry.loaded()
    for model in loaded:
        _show_loading(model, stop, has_bar=sys.stderr.isatty() and not given.log_json)
        if isinstance(failed := model.life, Failed):
            raise CommandError(failed.reason, 1)
    if not stop.is_set():
        names = ", ".join(model.name for model in loaded)
        path = "/v1" if server.url.startswith("http") else ""
        log.line("info", f"{names or 'lmlite'} is ready at {server.url}{path}")
        notifier.tell("READY=1")
        parent.tell(server.url)
    leases.close()
    stop.wait()
    notifier.tell("STOPPING=1")
    if grace_s := given.grace_seconds:
        log.line("info", f"stopping in {grace_s:g} seconds")
        server.leave(grace_s)
    server.drain(server.limits.drain_seconds)


def _shelf(given: argparse.Namespace, limits: Limits, log: Log) -> Shelf:
    """The models that may be served, and a worker for the first of them. Raises CommandError."""
    catalog = catalog_of(given)
    worker = None
    # The worker imports its code while this process checks the model's file.
    with contextlib.suppress(*SPAWN_FAULTS):  # a supervisor will retry and report the cause
        worker = WorkerProcess(WORKER_COMMAND, log, given.worker)
    return Shelf(catalog, model_options(given, limits, log), log, worker)


def catalog_of(given: argparse.Namespace) -> Catalog:
    """The files that the command line names, else the folder of models. Raises CommandError."""
    files, folders = [*given.files, *(given.more_files or ())], _folders(given)
    if files and not (given.folders or given.allow_download):
        folders = []
    elif not files and not given.folders and not Catalog(folders=folders).entries():
        if EMBEDDED_MODEL.exists():
            files = [str(EMBEDDED_MODEL)]
        elif not given.allow_download:  # the one file has a small form
            raise CommandError("name a model file: this lmlite has none of its own", 2)
    aliases = {}
    for alias in given.aliases or ():
        name, _, path = alias.partition("=")
        aliases[name] = path
    if len(files) == 1 and not given.folders:
        aliases = {name: path or files[0] for name, path in aliases.items()}
    elif "" in aliases.values() or any(
        (given.mmproj_path, given.loras, given.draft_path, given.chat_template_path, given.hosts)
    ):
        raise CommandError("--mmproj, --lora, --draft, --chat-template, --rpc and --alias NAME "
                           "are for a single model; with several, write --alias NAME=FILE",
                           2)  # fmt: skip
    return Catalog(files, folders, aliases)


def _folders(given: argparse.Namespace) -> list[str]:
    return given.folders or [str(models_folder())]


# ---- from flags to options -----------------------------------------------------------------


def _taken(kind: type[T], given: argparse.Namespace, **others: Any) -> T:
    """Makes a `kind` from the flags named like its fields; fields without a flag keep defaults."""
    values = {field.name: getattr(given, field.name, None) for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if value is not None} | others)


def limits_of(given: argparse.Namespace) -> Limits:
    """The values of the flags that `limit_flags` declares."""
    return _taken(Limits, given)


def load_of(given: argparse.Namespace, limits: Limits) -> Load:
    """The settings of all workers from the command line. Raises CommandError."""
    if given.hosts and not reaches_hosts(given.lib):
        raise CommandError(f"--rpc needs {RPC_NAME}: run `make native` again", 2)
    drives_gpu = drives_a_gpu(given.lib)
    return _taken(
        Load,
        given,
        model_path="",  # each model has its own
        lib_path=str(library_folder(given.lib).resolve()),  # a worker does not see LMLITE_LIB
        max_s=limits.max_seconds,
        n_batch=max(given.n_batch, given.n_parallel),
        uses_gpu=drives_gpu and given.n_gpu_layers != 0,
        rope=_taken(RopeScaling, given),
        sandbox=given.sandbox == "on" or (given.sandbox == "auto" and not drives_gpu),
        log_level="info" if given.log_level == "debug" else "error",
    )


def model_options(given: argparse.Namespace, limits: Limits, log: Log) -> ModelOptions:
    """The settings of all models from the command line."""
    values = dict(given.sampling or {})
    if given.reasoning_budget is not None:
        values["reasoning_budget_tokens"] = given.reasoning_budget

    def defaults(file: ModelFile, takes_images: bool) -> Defaults:
        params, origins = sampling.default_params(
            file.sampling, values, lambda text: log.line("warning", text)
        )
        return Defaults(
            params,
            origins,
            separate_reasoning=given.reasoning_format == "auto",
            allows_grammars=given.allow_grammar,
            takes_images=takes_images,
            limits=limits,
        )

    return _taken(ModelOptions, given, load=load_of(given, limits), defaults=defaults)


# ---- listening sockets and access checks ---------------------------------------------------


def _server(given: argparse.Namespace, limits: Limits, registry: Registry, log: Log) -> "Server":
    """A server that listens but does not accept yet. Raises CommandError."""
    # Imported here because `http.server` imports email, which slows other commands. It would also
    # import ssl, which is not needed either, and takes 1 MiB.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    from lmlite.server.http import Handler
    from lmlite.server.server import Server

    keys = keys_of(given)
    try:
        sockets = systemd.take_sockets()
        sockets = sockets or listening.listen(given.host, given.port, limits.backlog)
    except ValueError as err:
        raise CommandError(str(err), 2) from None
    except OSError as err:
        where = given.host if given.host.startswith("unix:") else f"{given.host}:{given.port}"
        raise CommandError(f"cannot listen on {where}: {err.strerror or err}", 2) from None
    is_open = listening.is_open(sockets)
    origins = frozenset(given.cors_origin or ())
    if not keys:
        _check_that_no_key_is_needed(is_open, origins)
    names = [given.host.lower(), *map(listening.host_of, sockets), *(given.allow_host or ())]
    gate = Gate(
        LOOPBACK_HOSTS.union(filter(is_host, names)),
        any_address=is_open,
        origins=origins,
        keys=keys,
    )
    return Server(sockets, Handler, registry, log, gate=gate, limits=limits, is_strict=given.strict)


def _check_that_no_key_is_needed(is_open: bool, origins: frozenset[str]) -> None:
    """Raises CommandError if other machines or all web pages could use the server."""
    strangers = ["other machines"] if is_open else []
    if not origins.isdisjoint({NO_ORIGIN, ANY_ORIGIN}):
        strangers.append("all web pages")
    if strangers:
        who = " and ".join(strangers)
        raise CommandError(f"{who} would reach this server, so it has to ask for a key: "
                           f"name a file with --api-key-file, or set {VARIABLE}", 2)  # fmt: skip


# ---- start and stop ------------------------------------------------------------------------


def _stop_event() -> threading.Event:
    """An event that the first SIGINT or SIGTERM sets; the second ends the process at once.

    The kernel may deliver a signal to any thread, but Python runs handlers only in the main
    thread, once it wakes up. So the handlers do nothing: Python's C code writes a byte to a
    socket (signal.set_wakeup_fd) at once, and a thread waits for this byte.
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


def _show_loading(model: ServedModel, stop: threading.Event, *, has_bar: bool) -> None:
    """Waits until the model is loaded or has failed; a bar on stderr shows progress."""
    supervisor = model.supervisor
    began_s = time.monotonic()
    while supervisor and isinstance(state := supervisor.state, Loading) and not stop.is_set():
        if has_bar:
            bar = "#" * int(state.progress * 30)
            elapsed = f"{time.monotonic() - began_s:.1f} s"
            print(f"\rloading {model.name} [{bar:.<30}] {elapsed} ", end="", file=sys.stderr)
        supervisor.wait_until_settled(LOOK_S)
    if has_bar:
        print(file=sys.stderr)
