"""Model: the weights of one GGUF file, and the properties of its memory (KV cache or states)."""

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

from lmlite.worker.llama import capi
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.vocab import Vocab


class Model:
    """The weights of one GGUF file, and its vocabulary."""

    def __init__(
        self,
        lib: Any,
        path: str,
        *,
        n_gpu_layers: int = -1,
        tensor_split: Sequence[float] = (),
        vocab_only: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Loads the file. on_progress gets the loaded fraction, 0 to 1. Raises LlamaError.

        tensor_split: the devices' shares of the layers, in any unit; (): by their memory.
        """
        self.lib = lib
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.vocab_only = vocab_only
        if tensor_split:
            params.tensor_split = (ctypes.c_float * lib.llama_max_devices())(*tensor_split)

        def report(fraction: float, _data: Any) -> bool:
            if on_progress is not None:
                on_progress(fraction)
            return True

        callback = capi.progress_callback(report)  # this reference must outlive the load
        params.progress_callback = ctypes.cast(callback, ctypes.c_void_p).value
        self.pointer = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise LlamaError(f"llama.cpp cannot load {path}")
        self.adapters: list[Any] = []  # freed with the model
        self.vocab = Vocab(lib, lib.llama_model_get_vocab(self.pointer))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self.pointer)
        self.n_embd: int = lib.llama_model_n_embd_out(self.pointer)
        self.n_scores: int = lib.llama_model_n_cls_out(self.pointer)  # of a reranking model
        self.n_gpu_layers = 0
        if lib.llama_supports_gpu_offload():
            n_layers = lib.llama_model_n_layer(self.pointer) + 1  # + 1: the output layer
            self.n_gpu_layers = n_layers if n_gpu_layers < 0 else min(n_gpu_layers, n_layers)
        self.has_encoder: bool = lib.llama_model_has_encoder(self.pointer)
        # A recurrent state sums up all tokens: it cannot be cut at a token, nor shared in part.
        is_recurrent: bool = lib.llama_model_is_recurrent(self.pointer)
        self.can_cut_memory: bool = not (is_recurrent or lib.llama_model_is_hybrid(self.pointer))
        self.takes_cells: bool = not is_recurrent  # each token takes a cell of memory
        self.n_swa: int = lib.llama_model_n_swa(self.pointer)  # tokens of a sliding window, or 0

    def add_adapter(self, path: str) -> None:
        """Loads a LoRA adapter, before the first context is made. Raises LlamaError."""
        adapter = self.lib.llama_adapter_lora_init(self.pointer, os.fsencode(path))
        if not adapter:
            raise LlamaError(f"llama.cpp cannot load the adapter {path}")
        self.adapters.append(adapter)

    def template(self, name: str) -> str | None:
        """The source of the file's template with this name; None: it has none."""
        source: bytes | None = self.lib.llama_model_chat_template(self.pointer, name.encode())
        return source.decode("utf-8", "replace") if source is not None else None

    def close(self) -> None:
        """Frees the weights. All contexts of this model must be closed first."""
        self.lib.llama_model_free(self.pointer)
