"""A worker: loads a model, reads frames, runs the engine. `python -m lmlite.worker`

Frames come on standard input and leave on standard output; log lines go to standard error.
The first frame is a `Load`. The main thread reads frames and prepares what they ask for; the
engine thread does the rest. The end of the input ends the process.
"""

import ctypes
import faulthandler
import functools
import math
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from lmlite import frames
from lmlite.contexts import (
    EMBEDDING_BATCH,
    EMBEDDING_LANES,
    context_size,
    n_ctx_max,
    n_lanes,
    n_ubatch,
)
from lmlite.errors import ApiError, InternalError, PromptTooLong, Unsupported
from lmlite.library import library_folder
from lmlite.messages import (
    Cancel,
    Chat,
    Complete,
    Embed,
    Event,
    Failed,
    Load,
    LoadFailed,
    Loading,
    Note,
    Outdated,
    Ready,
    Request,
    Tokenize,
)
from lmlite.worker.chat.renderer import TemplateError
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.embedder import CPU_TOGETHER, Embedder
from lmlite.worker.engine import Engine
from lmlite.worker.guard import mappings, sandbox
from lmlite.worker.guard.model_files import FilesChanged, ModelFiles
from lmlite.worker.llama import capi
from lmlite.worker.llama.model import Context, LlamaError, Model
from lmlite.worker.media import MediaEncoder
from lmlite.worker.memory.checkpoints import CheckpointFiles, Checkpoints, ParkedLanes, identity_of
from lmlite.worker.preparer import Preparer
from lmlite.worker.threads import ThreadGovernor

MAX_RECURSION = 5000  # frames: a request may nest as deep as the server could read it
NO_MEMORY_TO_EMBED = "this model's embeddings would need more memory than there is"


class Outbox:
    """Writes events to the server, whole frames at a time, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, events: Iterable[Event]) -> None:
        """One write for all of them."""
        data = b"".join(map(frames.encode, events))
        try:
            with self._lock:
                self._stream.write(data)
                self._stream.flush()
        except OSError:
            os._exit(1)  # the server is gone, and with it the reason to go on


class Worker:
    """One loaded model and its engine. Methods belong to the reader's thread."""

    def __init__(self, load: Load, outbox: Outbox) -> None:
        """Loads the model and starts the engine. Raises what `LOAD_FAULTS` lists."""
        self._load, self._outbox = load, outbox
        lib = capi.load(load.lib_path)
        lib.lml_log_level(capi.LOG_LEVELS[load.log_level])
        lib.llama_backend_init()
        with ExitStack() as stack:  # closes in reverse order, also when a later step fails
            self._files = ModelFiles(load.parts)
            stack.callback(self._files.close)
            self._model = self._load_model(lib)
            stack.callback(self._model.close)
            self._files.check_names()
            if self._model.has_encoder:
                raise LlamaError(
                    "models with an encoder, but for those of BERT's kind, are not served"
                )
            self._n_threads = load.n_threads or default_n_threads()
            self._n_ctx = context_size(load, self._model.n_ctx_train)
            self._n_ctx_max = n_ctx_max(load, self._model.n_ctx_train)
            context = self._make_context(stack) if load.generates else None
            template = self._make_template(stack) if load.generates else None
            self._n_ctx_seq = min(self._n_ctx, self._n_ctx_max)
            eye = self._make_eye(stack)
            n_batch = context.n_batch if context else 0
            self._preparer = Preparer(
                self._model, template, self._n_ctx_seq, self._send, eye, n_batch, self._advice()
            )
            if load.sandbox:  # before there are further threads, to which it would not apply
                self._enter_sandbox()
            n_together = None if load.uses_gpu else CPU_TOGETHER
            embedder = Embedder(self._make_embedding_context, n_together)
            stack.callback(embedder.close)
            self._engine = Engine(
                self._model,
                context,
                embedder,
                n_parallel=load.n_parallel,
                prefill_budget_s=load.prefill_budget_s,
                max_s=load.max_s,
                emit=self._send,
                checkpoints=self._make_checkpoints(stack) if context else (),
                parked=self._make_parked(),
                governor=self._make_governor(),
                eye=eye,
            )
            self._thread = threading.Thread(target=self._run_engine, name="engine", daemon=True)
            self._thread.start()
            stack.callback(self._thread.join)
            stack.callback(self._engine.stop)
            self._open = stack.pop_all()

    def ready(self) -> Ready:
        """What the server needs to know of the model."""
        return Ready(
            n_ctx=self._n_ctx_seq,
            n_vocab=self._model.vocab.n_tokens,
            n_embd=self._model.n_embd,
            n_parallel=self._load.n_parallel,
            n_threads=self._n_threads,
            n_gpu_layers=self._model.n_gpu_layers,
            generates=self._load.generates,
            sees=self._load.mmproj_path is not None,
            bos_token=self._model.vocab.spelling("bos"),
            eos_token=self._model.vocab.spelling("eos"),
            pad_token=self._model.vocab.spelling("pad"),
            adds_bos=self._model.vocab.adds_bos,
        )

    def handle(self, request: Request) -> None:
        """Queues a request for the engine, or answers with the reason why not."""
        match request:
            case Cancel(request_id):
                self._engine.cancel(request_id)
            case Embed() if not self._load.embeds:
                self._fail(request.id, Unsupported(NO_MEMORY_TO_EMBED, param="model"))
            case Chat() | Complete() | Embed() | Tokenize():
                self._check_files()
                try:
                    if isinstance(request, Tokenize):
                        self._send([self._preparer.tokenize(request)])
                    else:
                        self._engine.submit(self._preparer.prepare(request))
                except ApiError as err:
                    self._fail(request.id, err)
                except Exception as err:  # our mistake or the library's: others go on
                    traceback.print_exc()
                    self._fail(request.id, InternalError(f"the request cannot be prepared: {err}"))

    def close(self) -> None:
        """Stops the engine, then frees contexts and model."""
        self._open.close()

    def _fail(self, request_id: int, error: ApiError) -> None:
        failed = Failed(request_id, type(error).__name__, error.message, error.param)
        if isinstance(error, PromptTooLong):
            failed = replace(failed, message=error.advice, tokens=error.tokens)
        self._outbox.send([failed])

    def _send(self, events: Iterable[Event]) -> None:
        """What the model said. From any thread."""
        self._check_files()
        self._outbox.send(events)

    def _check_files(self) -> None:
        """Ends the process when its weights are no longer those that were loaded."""
        if self._files.have_changed():
            self._outbox.send([Outdated()])
            os._exit(0)

    def _run_engine(self) -> None:
        """The engine's thread. Without it the process is of no use: a new one is better."""
        try:
            self._engine.run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    # ---- loading ---------------------------------------------------------------------------

    def _load_model(self, lib: Any) -> Model:
        """Pages that much was copied from are given back: what is needed of them comes again."""
        load, n_own = self._load, mappings.own_bytes()
        model = Model(
            lib, load.model_path, n_gpu_layers=load.n_gpu_layers, on_progress=self._progress
        )
        n_file = sum(part.n_bytes for part in load.parts)
        if model.n_gpu_layers or mappings.own_bytes() - n_own > mappings.WORTH * n_file:
            mappings.give_back([part.ino for part in load.parts])
        return model

    def _progress(self, fraction: float) -> None:
        self._outbox.send([Loading(fraction)])

    def _make_context(self, stack: ExitStack) -> Context:
        load, n_lanes = self._load, self._n_lanes()
        # llama.cpp ends a process whose batch, or context, has fewer tokens than sequences.
        n_ctx = max(self._n_ctx, n_lanes)
        n_batch = max(min(load.n_batch, n_ctx), n_lanes)
        context = Context(
            self._model,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch(load, n_batch, n_lanes),
            n_seq_max=n_lanes,
            n_threads=self._n_threads,
            cache_type_k=load.cache_type_k,
            cache_type_v=load.cache_type_v,
            flash_attn=load.flash_attn,
            rope=load.rope,
            n_ctx_max=self._n_ctx_max,
        )
        stack.callback(context.close)
        self._n_ctx = context.n_ctx
        return context

    def _advice(self) -> str:
        """How a longer prompt could be read."""
        if self._n_ctx_seq < self._n_ctx_max:
            return f"Shorten the prompt, or serve with a larger --ctx: {self._n_ctx_max} at most."
        trained = f"this model was trained for {self._model.n_ctx_train} tokens"
        return f"Shorten the prompt: {trained} (see --rope-scaling)."

    def _make_eye(self, stack: ExitStack) -> MediaEncoder | None:
        load = self._load
        if load.mmproj_path is None:
            return None
        eye = MediaEncoder(
            self._model,
            load.mmproj_path,
            n_threads=self._n_threads,
            max_bytes=load.image_memory,
            lib_path=load.lib_path,
        )
        stack.callback(eye.close)
        return eye

    def _make_governor(self) -> ThreadGovernor | None:
        """None: the number of threads was asked for, or a GPU does the work."""
        if self._load.n_threads is not None or self._model.n_gpu_layers:
            return None
        return ThreadGovernor(self._n_threads, on_change=self._tell_threads)

    def _tell_threads(self, old: int, new: int) -> None:
        text = f"generates with {new} of {self._n_threads} threads, it was {old}"
        self._outbox.send([Note("info", text)])

    def _n_lanes(self) -> int:
        n_parallel = self._load.n_parallel
        if n_parallel > capi.MAX_SEQUENCES:
            raise LlamaError(f"at most {capi.MAX_SEQUENCES} sequences can run at the same time")
        return min(n_lanes(n_parallel, self._model.can_cut_memory), capi.MAX_SEQUENCES)

    def _make_parked(self) -> ParkedLanes | None:
        n_bytes = self._load.checkpoint_memory
        return ParkedLanes(n_bytes) if n_bytes and self._model.can_cut_memory else None

    def _make_checkpoints(self, stack: ExitStack) -> list[Checkpoints]:
        """In memory where memory itself cannot be cut, in files where there is a folder."""
        load = self._load
        stores: list[Checkpoints] = []
        if not self._model.can_cut_memory and load.checkpoint_memory:
            stores.append(Checkpoints(load.checkpoint_memory))
        if load.cache_dir is not None:
            library = str(library_folder(load.lib_path) / capi.LLAMA_NAME)
            try:
                identity = identity_of(
                    [*filter(None, (load.model_path, load.mmproj_path)), library],
                    self._n_ctx, load.cache_type_k, load.cache_type_v, load.flash_attn, load.rope,
                )  # fmt: skip
                files = CheckpointFiles(Path(load.cache_dir), load.cache_size, identity, self._warn)
            except OSError as err:
                raise LlamaError(f"{load.cache_dir} cannot keep checkpoints: {err}") from None
            stack.callback(files.close)
            stores.append(files)
        return stores

    def _enter_sandbox(self) -> None:
        folder = self._load.cache_dir
        try:
            if folder is not None:
                Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            missing = sandbox.enter(folder)
        except OSError as err:
            raise LlamaError(f"{folder} cannot keep checkpoints: {err}") from None
        if missing:
            self._warn("; ".join(missing))

    def _warn(self, text: str) -> None:
        self._outbox.send([Note("warning", text)])

    def _make_template(self, stack: ExitStack) -> ChatTemplate:
        template = ChatTemplate(self._model, self._load.chat_template)
        stack.callback(template.close)
        return template

    def _make_embedding_context(self) -> Context:
        """Runs in the engine thread, for the first input."""
        n_batch = self._n_ctx_seq
        if self._load.generates:
            n_batch = min(EMBEDDING_BATCH, n_batch)
        # llama.cpp plans its buffers for a batch that all sequences share evenly.
        n_batch = math.ceil(n_batch / EMBEDDING_LANES) * EMBEDDING_LANES
        make = functools.partial(
            Context,
            self._model,
            n_ctx=max(self._n_ctx_seq, n_batch),
            n_batch=n_batch,
            n_seq_max=EMBEDDING_LANES,
            n_threads=self._n_threads,
            flash_attn=self._load.flash_attn,
            rope=self._load.rope,
            n_ctx_max=self._n_ctx_max,
        )
        context = make(pooling_type=capi.POOLING_TYPE_UNSPECIFIED)
        if context.pooling_type == capi.POOLING_TYPE_NONE:
            context.close()
            context = make(pooling_type=capi.POOLING_TYPE_MEAN)
        # A score in place of a vector would be read beyond its end; the server knows better.
        assert context.pooling_type != capi.POOLING_TYPE_RANK
        return context


LOAD_FAULTS = (capi.LibraryError, LlamaError, TemplateError)


def default_n_threads() -> int:
    """Physical cores that this process may use: hyper-threads only wait for each other."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                cores.add(file.read())
        except OSError:
            return len(allowed)
    return len(cores)


def claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for frames; whatever else prints goes to standard error."""
    source, sink = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def join_parent() -> None:
    """Dies when the server dies, leaves signals to it, and writes no core files."""
    # A terminal and a service manager signal every process; the server lets answers end first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> int:
    """The process: 0 when the server hangs up, 1 when the model cannot be loaded."""
    sys.setrecursionlimit(MAX_RECURSION)
    source, sink = claim_pipes()
    join_parent()
    outbox = Outbox(sink)
    load: Load | None = frames.read(source, Load)
    if load is None:
        return 1
    try:
        worker = Worker(load, outbox)
    except FilesChanged:
        outbox.send([Outdated()])
        return 0
    except LOAD_FAULTS as err:
        outbox.send([LoadFailed(str(err))])
        return 1
    outbox.send([worker.ready()])
    while (request := frames.read(source, Request)) is not None:
        worker.handle(request)
    worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
