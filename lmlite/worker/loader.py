"""Turns a `Load` into a working model: weights, contexts, checkpoint stores and sandbox."""

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal, TypeVar

from lmlite.contexts import (
    EMBEDDING_LANES,
    context_size,
    embedding_batch,
    n_ctx_max,
    n_lanes,
    n_ubatch,
)
from lmlite.library import library_folder
from lmlite.messages import Event, Load, Loading, ModelPart, Note, Ready
from lmlite.worker.chat.renderer import TemplateError
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.draft import Drafter, check_vocabulary
from lmlite.worker.embedder import CPU_TOGETHER, Embedder
from lmlite.worker.generator import Generator
from lmlite.worker.guard import mappings, sandbox
from lmlite.worker.guard.model_files import ModelFiles
from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.context import Context
from lmlite.worker.llama.hosts import add_hosts
from lmlite.worker.llama.model import Model
from lmlite.worker.media import MediaEncoder
from lmlite.worker.memory.checkpoint_files import CheckpointFiles, identity_of
from lmlite.worker.memory.checkpoints import Checkpoints, ParkedLanes
from lmlite.worker.pairs import Pairs
from lmlite.worker.preparer import Preparer
from lmlite.worker.threads import ThreadGovernor

Result = TypeVar("Result")

LOAD_FAULTS = (capi.LibraryError, LlamaError, TemplateError)


class LoadedModel:
    """A model with its contexts, generator, embedder and stores."""

    def __init__(self, load: Load, send: Callable[[Iterable[Event]], None]) -> None:
        """`send` takes progress and notes. Raises the LOAD_FAULTS, and FilesChanged."""
        self._load, self._send = load, send
        self._writes_are_bound: bool | None = None
        lib = capi.load(load.lib_path, load.log_level)
        lib.llama_backend_init()
        with ExitStack() as self._stack:  # closes in reverse order, also if a later step fails
            own = self._stack.enter_context
            self.files = own(closing(ModelFiles((*load.parts, *load.draft_parts, *load.adapters))))
            if load.hosts:
                self._reach_hosts(lib)
            self._model = model = own(closing(self._load_model(lib, load.model_path, load.parts)))
            for part in load.adapters:
                model.add_adapter(part.path)
            self.files.check_names()
            if model.has_encoder:
                raise LlamaError("models with an encoder are not served, except BERT and its kind")
            self._n_threads = load.n_threads or default_n_threads()
            self._n_ctx = context_size(load, model.n_ctx_train)
            self._n_ctx_max = n_ctx_max(load, model.n_ctx_train)
            context = template = encoder = None
            if load.generates:
                context = own(closing(self._make_context()))
                template = own(closing(ChatTemplate(model, load.chat_template)))
                self._n_ctx = context.n_ctx  # as padded by llama.cpp
            if load.mmproj_path is not None:
                encoder = own(closing(self._make_encoder(load.mmproj_path)))
            drafter = self._make_drafter(lib, context) if context and load.draft_path else None
            self._n_ctx_seq = min(self._n_ctx, self._n_ctx_max)
            n_batch = context.n_batch if context else 0
            self.preparer = Preparer(
                model, template, self._n_ctx_seq, send, encoder, n_batch, self._advice(),
                Pairs(model) if load.ranker else None, load.reasoning_budget_message,
            )  # fmt: skip
            self._give_memory_back(lib)
            if load.sandbox:  # must come before more threads: Landlock covers no existing ones
                self._enter_sandbox()
            n_together = None if load.uses_gpu else CPU_TOGETHER
            self.embedder = own(closing(Embedder(self._make_embedding_context, n_together)))
            self.generator = None
            if context:
                self.generator = self._make_generator(context, encoder, drafter)
            self.close = self._stack.pop_all().close

    def ready(self) -> Ready:
        """The model's properties that the server needs."""
        vocab = self._model.vocab
        return Ready(
            n_ctx=self._n_ctx_seq,
            n_vocab=vocab.n_tokens,
            n_embd=self._model.n_embd,
            n_parallel=self._load.n_parallel,
            n_threads=self._n_threads,
            n_gpu_layers=self._model.n_gpu_layers,
            generates=self._load.generates,
            sees=self._load.mmproj_path is not None,
            bos_token=vocab.spelling("bos"),
            eos_token=vocab.spelling("eos"),
            pad_token=vocab.spelling("pad"),
            adds_bos=vocab.adds_bos,
            cpu=self._model.lib.cpu_variant,
        )

    def _note(self, level: Literal["info", "warning"], text: str) -> None:
        self._send([Note(level, text)])

    # ---- the model -------------------------------------------------------------------------

    def _load_model(self, lib: Any, path: str, parts: Sequence[ModelPart]) -> Model:
        """Loads the model, then drops pages whose weights were repacked. Needed pages come back."""
        load, n_own = self._load, mappings.own_bytes()
        model = Model(
            lib,
            path,
            n_gpu_layers=load.n_gpu_layers,
            tensor_split=load.tensor_split,
            on_progress=lambda fraction: self._send([Loading(fraction)]),
        )
        n_file = sum(part.n_bytes for part in parts)
        if model.n_gpu_layers or mappings.own_bytes() - n_own > mappings.WORTH * n_file:
            mappings.drop_pages([part.ino for part in parts])
        return model

    def _give_memory_back(self, lib: Any) -> None:
        """Not if a GPU's driver has threads; it might also need some pages where they are."""
        if not self._load.uses_gpu and mappings.n_threads() == 1:
            lib.lml_trim()

    def _make_encoder(self, path: str) -> MediaEncoder:
        return MediaEncoder(
            self._model,
            path,
            n_threads=self._n_threads,
            max_bytes=self._load.image_memory,
        )

    def _advice(self) -> str:
        """Advice for prompts that do not fit the context."""
        if self._n_ctx_seq < self._n_ctx_max:
            return f"Shorten the prompt, or serve with a larger --ctx: {self._n_ctx_max} at most."
        trained = f"this model was trained for {self._model.n_ctx_train} tokens"
        return f"Shorten the prompt: {trained} (see --rope-scaling)."

    # ---- contexts --------------------------------------------------------------------------

    def _make_context(self) -> Context:
        load, n_parallel = self._load, self._load.n_parallel
        if n_parallel > capi.MAX_SEQUENCES:
            raise LlamaError(f"at most {capi.MAX_SEQUENCES} sequences can run at the same time")
        n_seq_max = min(n_lanes(n_parallel, self._model.can_cut_memory), capi.MAX_SEQUENCES)
        # llama.cpp aborts the process if a batch or context has fewer tokens than sequences.
        n_ctx = max(self._n_ctx, n_seq_max)
        n_batch = max(min(load.n_batch, n_ctx), n_seq_max)
        return self._context(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch(load, n_batch, n_seq_max),
            n_seq_max=n_seq_max,
            cache_type_k=load.cache_type_k,
            cache_type_v=load.cache_type_v,
        )

    def _context(self, **options: Any) -> Context:
        return Context(
            self._model,
            n_threads=self._n_threads,
            flash_attn=self._load.flash_attn,
            rope=self._load.rope,
            n_ctx_max=self._n_ctx_max,
            **options,
        )

    def _make_embedding_context(self) -> Context:
        """Runs in the engine thread, for the first input."""
        n_batch = embedding_batch(self._load, self._n_ctx_seq)
        # llama.cpp sizes its buffers for a batch that is divided evenly among all sequences.
        n_batch = math.ceil(n_batch / EMBEDDING_LANES) * EMBEDDING_LANES
        n_ctx = max(self._n_ctx_seq, n_batch)
        make = functools.partial(
            self._context, n_ctx=n_ctx, n_batch=n_batch, n_seq_max=EMBEDDING_LANES
        )
        context = make(pooling_type=capi.POOLING_TYPE_UNSPECIFIED)
        if context.pooling_type == capi.POOLING_TYPE_NONE:
            context.close()
            context = make(pooling_type=capi.POOLING_TYPE_MEAN)
        # A model is known as a reranking model by its file, without the library.
        assert (context.pooling_type == capi.POOLING_TYPE_RANK) == bool(self._load.ranker)
        return context

    # ---- the generator ---------------------------------------------------------------------

    def _make_drafter(self, lib: Any, context: Context) -> Drafter:
        """The draft model with a context of the same size. Raises LlamaError if it cannot help."""
        load, own = self._load, self._stack.enter_context
        assert load.draft_path is not None
        name = Path(load.draft_path).name
        model = own(closing(self._load_model(lib, load.draft_path, load.draft_parts)))
        for each, whose in ((self._model, "this model"), (model, name)):
            if not each.can_cut_memory:
                raise LlamaError(f"--draft does not work: the memory of {whose} cannot be cut")
        check_vocabulary(model.vocab, self._model.vocab, name)
        draft_context = Context(
            model,
            n_ctx=context.n_ctx,
            n_batch=context.n_batch,
            n_ubatch=n_ubatch(load, context.n_batch, context.n_seq_max),
            n_seq_max=context.n_seq_max,
            n_threads=self._n_threads,
            cache_type_k=load.cache_type_k,
            cache_type_v=load.cache_type_v,
            flash_attn=load.flash_attn,
        )
        own(closing(draft_context))
        return own(closing(Drafter(model, draft_context, context, load.n_draft)))

    def _make_generator(
        self, context: Context, encoder: MediaEncoder | None, drafter: Drafter | None
    ) -> Generator:
        load = self._load
        parks = load.checkpoint_memory and self._model.can_cut_memory
        return Generator(
            self._model,
            context,
            n_parallel=load.n_parallel,
            prefill_budget_s=load.prefill_budget_s,
            max_s=load.max_s,
            checkpoints=tuple(self._make_checkpoints()),
            parked=ParkedLanes(load.checkpoint_memory) if parks else None,
            governor=self._make_governor(),
            encoder=encoder,
            drafter=drafter,
        )

    def _make_governor(self) -> ThreadGovernor | None:
        """None if the number of threads was given, or a GPU does the work."""
        if self._load.n_threads is not None or self._model.n_gpu_layers:
            return None

        def tell(old: int, new: int) -> None:
            text = f"generates with {new} of {self._n_threads} threads, it was {old}"
            self._note("info", text)

        return ThreadGovernor(self._n_threads, on_change=tell)

    def _make_checkpoints(self) -> Iterable[Checkpoints]:
        """Stores in memory if the context's memory cannot be cut; in files if a folder is set."""
        load = self._load
        if load.checkpoint_memory and not self._model.can_cut_memory:
            yield Checkpoints(load.checkpoint_memory)
        if load.cache_dir is not None:
            library = str(library_folder(load.lib_path) / capi.LIBRARY_NAME)
            paths = [*filter(None, (load.model_path, load.mmproj_path)), library]
            paths += [part.path for part in load.adapters]
            types = load.cache_type_k, load.cache_type_v
            warn = functools.partial(self._note, "warning")
            try:
                identity = identity_of(paths, self._n_ctx, *types, load.flash_attn, load.rope)
                files = CheckpointFiles(
                    Path(load.cache_dir), load.cache_size, identity, warn, len(load.adapters)
                )
            except OSError as err:
                raise LlamaError(f"{load.cache_dir} cannot keep checkpoints: {err}") from None
            yield self._stack.enter_context(closing(files))

    def _reach_hosts(self, lib: Any) -> None:
        """Connects before the sandbox closes: later, the model's own connections are all it has.

        Each connection has a thread of the library, so Landlock comes before.
        """
        if self._load.sandbox:
            self._writes_are_bound = self._in_cache_dir(sandbox.bound_writes)
        add_hosts(lib, self._load.lib_path, self._load.hosts)

    def _in_cache_dir(self, protect: Callable[[str | None], Result]) -> Result:
        folder = self._load.cache_dir
        try:
            if folder is not None:
                Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            return protect(folder)
        except OSError as err:
            raise LlamaError(f"{folder} cannot keep checkpoints: {err}") from None

    def _enter_sandbox(self) -> None:
        enter = functools.partial(sandbox.enter, writes_are_bound=self._writes_are_bound)
        missing = self._in_cache_dir(enter)
        if missing:
            self._note("warning", "; ".join(missing))


def default_n_threads() -> int:
    """Physical cores that this process may use: hyper-threads of a core slow each other down."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(path.read_text())
        except OSError:
            return len(allowed)
    return len(cores)
