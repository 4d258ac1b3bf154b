"""Feeds thousands of broken model files to the pre-check, and those it accepts to a real worker.

    python -m tests.fuzz.gguf --count 20000 --seed 1     the run; one line of totals
    python -m tests.fuzz.gguf --seed 1 --only 42 --keep 42.gguf      one mutant, to look at

Each mutant is a small valid llama with one to three things changed: a value, a type, a length, a
token, a tensor's shape or place, some bytes. It depends on the seed and its number alone. What
`read_model_file` accepts is loaded by a worker, which chats, completes and embeds: every death of a
worker is a rule that the pre-check lacks. 20,000 take about a quarter of an hour.
"""

import argparse
import math
import os
import random
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmlite import frames
from lmlite.errors import ModelFileError
from lmlite.gguf.file import read_model_file
from lmlite.gguf.header import TENSOR_TYPES
from lmlite.messages import (
    Chat,
    ChatMessage,
    Complete,
    Embed,
    Embedded,
    Event,
    Failed,
    Finished,
    Load,
    LoadFailed,
    Ready,
    Request,
    SamplingParams,
    Scored,
)
from lmlite.server.models.watchdog import work_of
from lmlite.server.models.worker_process import WORKER_COMMAND, worker_environment
from tests.support import gguf_writer as writer
from tests.support.gguf_writer import Shape, Tensor, Typed, Value

Loader = Callable[[str], str]
Check = Callable[[str], object]  # raises ModelFileError
WORK_S, WAIT_S = 30.0, 600.0  # processor time, wall time: a worker that takes longer hangs
PROBE = "Hello <|im_start|> \u00e9\u4e16\U0001f600 12 \n\t\x00\x7f"

# ---- mutants -------------------------------------------------------------------------------

WHOLES = (0, 1, 2, 3, 5, 7, 31, 33, 64, 100, 255, 256, 512, 513, 1024, 4096, 65535, 65536,
          1 << 20, (1 << 26) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1)  # fmt: skip
REALS = (0.0, -0.0, 1.0, -1.0, -1e-5, 1e-30, 1e30, -1e30, 0.5, 10000.0, math.inf, -math.inf,
         math.nan)  # fmt: skip
TEXTS = ("", "llama", "llama4", "gpt2", "bert", "t5", "rwkv", "qwen2", "mamba", "clip", "none",
         "no_vocab", "default", "llama-bpe", "yarn", "longrope", "linear", "x\0y", "{% if",
         "{{ messages[0] }}", "\ud7ff" * 100)  # fmt: skip
TOKENS = (b"", b"a", b"a\0b", b"\0", b"<0x41>", b"<0xZZ>", b"<0x", b"\xff\xfe", b"\xc4",
          b"x" * 5000, b"</s>", b"<|im_end|>", b"[EMPTY_3]", "\u0120".encode(),
          "\U0001f600".encode())  # fmt: skip

# Keys that llama.cpp reads and the small llama lacks.
ABSENT_KEYS: dict[str, Sequence[Value]] = {
    "llama.vocab_size": WHOLES,
    "llama.expert_count": WHOLES,
    "llama.expert_used_count": WHOLES,
    "llama.expert_group_count": WHOLES,
    "llama.attention.key_length": WHOLES,
    "llama.attention.value_length": WHOLES,
    "llama.attention.sliding_window": WHOLES,
    "llama.attention.causal": (True, False),
    "llama.attention.scale": REALS,
    "llama.attention.clamp_kqv": REALS,
    "llama.attention.max_alibi_bias": REALS,
    "llama.attention.layer_norm_epsilon": REALS,
    "llama.attention.group_norm_groups": WHOLES,
    "llama.embedding_length_out": WHOLES,
    "llama.pooling_type": WHOLES,
    "llama.nextn_predict_layers": WHOLES,
    "llama.rope.scaling.type": TEXTS,
    "llama.rope.scaling.factor": REALS,
    "llama.rope.scaling.attn_factor": REALS,
    "llama.rope.scaling.original_context_length": WHOLES,
    "llama.rope.scaling.yarn_log_multiplier": REALS,
    "llama.rope.dimension_sections": ([1, 1, 1, 1], [0, 0, 0, 0], [-1, 2, 3, 4]),
    "llama.logit_scale": REALS,
    "llama.residual_scale": REALS,
    "llama.embedding_scale": REALS,
    "llama.use_parallel_residual": (True, False),
    "general.alignment": (0, 1, 8, 16, 32, 64, 33, 4096, 1 << 31),
    "general.quantization_version": WHOLES,
    "split.count": (Typed(writer.U16, 0), Typed(writer.U16, 1), Typed(writer.U16, 2)),
    "split.no": (Typed(writer.U16, 0), Typed(writer.U16, 7)),
    "tokenizer.ggml.add_eos_token": (True, False),
    "tokenizer.ggml.add_space_prefix": (True, False),
    "tokenizer.ggml.scores": ([0.0], [math.nan] * 283),
    "tokenizer.ggml.unknown_token_id": WHOLES,
    "tokenizer.ggml.eot_token_id": WHOLES,
    "tokenizer.ggml.seperator_token_id": WHOLES,
    "tokenizer.ggml.fim_pre_token_id": WHOLES,
    "tokenizer.ggml.suppress_tokens": ([0, 1], [-1, 99999]),
    "tokenizer.ggml.token_type_count": WHOLES,
    "tokenizer.ggml.precompiled_charsmap": ([0, 1], Typed(writer.U8, [255] * 16)),
}

SHAPES = (
    Shape(),
    Shape(n_layer=1, n_embd=32, n_head=2, n_head_kv=1, n_ff=32, n_ctx=128),
    Shape(n_layer=1, n_embd=64, n_head=64, n_head_kv=64, n_ff=32),  # one weight per head
    Shape(n_layer=1, n_embd=60, n_head=4, n_head_kv=2, n_ff=30),  # 15 per head: odd
    Shape(n_layer=1, n_embd=48, n_head=6, n_head_kv=4, n_ff=1),  # 6 is no multiple of 4
    Shape(n_layer=1, n_embd=1, n_head=1, n_head_kv=1, n_ff=1),
    Shape(n_layer=1, n_embd=32, n_head=2, n_head_kv=4, n_ff=32),  # more key heads than query heads
    Shape(
        n_layer=1, n_embd=256, n_head=4, n_head_kv=2, n_ff=256
    ),  # rows of whole blocks of any type
)
# Types that weights cannot have, and their (weights, bytes) per block.
STRANGE_TYPES = {9: (32, 36), 15: (256, 292), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
                 28: (1, 8)}  # fmt: skip


class Draft:
    """A model about to be written, and what was changed in it."""

    def __init__(self, source: random.Random, base: tuple[dict[str, Value], list[Tensor]]) -> None:
        self.source = source
        self.metadata = dict(base[0])
        self.tensors = list(base[1])
        self.counts: dict[str, int] = {}
        self.changes: list[str] = []

    def encode(self) -> bytes:
        """The file's bytes; an impossible alignment is claimed but not applied."""
        claimed = self.metadata.get("general.alignment")
        alignment = claimed if isinstance(claimed, int) and 1 <= claimed <= 4096 else 32
        data = writer.encode_gguf(self.metadata, self.tensors, alignment=alignment, **self.counts)
        if self.source.random() < 0.15:
            data = self._change_bytes(data)
        return data

    def change(self) -> None:
        """One change of one kind."""
        kinds = (
            *(self._value,) * 3, self._kind, self._drop_key, *(self._add_key,) * 2,
            *(self._token,) * 2, self._token_type, self._list_length, self._dims, self._type,
            self._offset, self._name, self._drop_tensor, self._count, self._per_layer,
        )  # fmt: skip
        self.changes.append(self.source.choice(kinds)())

    def _key(self) -> str:
        return self.source.choice(list(self.metadata))

    def _value(self) -> str:
        key = self._key()
        old = self.metadata[key]
        new: Value = old
        if isinstance(old, bool):
            new = not old
        elif isinstance(old, int):
            new = self.source.choice((*WHOLES, old + 1, max(0, old - 1)))
        elif isinstance(old, float):
            new = self.source.choice(REALS)
        elif isinstance(old, str):
            new = self.source.choice(TEXTS)
        self.metadata[key] = new
        return f"{key} = {str(new)[:40]!r}"

    def _kind(self) -> str:
        key = self._key()
        old = self.metadata[key]
        if isinstance(old, str):
            self.metadata[key] = self.source.choice((1, 1.5, True, [old], [1]))
            return f"{key} is no string"
        kind = self.source.choice((writer.U8, writer.U16, writer.I32, writer.U64, writer.I64,
                                   writer.F32, writer.F64, writer.BOOL))  # fmt: skip
        if not isinstance(old, int | float):
            self.metadata[key] = Typed(kind, [0, 1])
        elif kind in (writer.F32, writer.F64):
            self.metadata[key] = Typed(kind, float(old))
        elif kind in (writer.U8, writer.BOOL) or not math.isfinite(old):
            self.metadata[key] = Typed(kind, 1)
        else:
            self.metadata[key] = Typed(kind, int(old) & 0x7FFF)
        return f"{key} of type {kind}"

    def _drop_key(self) -> str:
        key = self._key()
        del self.metadata[key]
        return f"no {key}"

    def _add_key(self) -> str:
        key = self.source.choice(list(ABSENT_KEYS))
        self.metadata[key] = self.source.choice(ABSENT_KEYS[key])
        return f"{key} = {str(self.metadata[key])[:40]}"

    def _per_layer(self) -> str:
        key = "llama." + self.source.choice(
            ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        )
        n_layer = self.source.choice((1, 2, 3))
        self.metadata[key] = [self.source.choice((0, 1, 2, 4, 128, -1)) for _ in range(n_layer)]
        return f"{key} = {self.metadata[key]}"

    def _list(self, name: str) -> list[Any]:
        values = self.metadata.get(f"tokenizer.ggml.{name}")
        return list(values) if isinstance(values, list) and values else [0]

    def _token(self) -> str:
        tokens = self._list("tokens")
        place = self.source.randrange(len(tokens))
        tokens[place] = self.source.choice((*TOKENS, tokens[0], tokens[-1]))
        self.metadata["tokenizer.ggml.tokens"] = [
            text if isinstance(text, bytes) else str(text).encode() for text in tokens
        ]
        return f"token {place} = {str(tokens[place])[:40]!r}"

    def _token_type(self) -> str:
        types = self._list("token_type")
        place = self.source.randrange(len(types))
        types[place] = self.source.choice((0, 1, 2, 3, 4, 5, 6, 7, -1, 1 << 30))
        self.metadata["tokenizer.ggml.token_type"] = types
        return f"type of token {place} = {types[place]}"

    def _list_length(self) -> str:
        name = self.source.choice(("tokens", "token_type", "merges"))
        values = self._list(name)
        values = values if name == "token_type" else [str(text) for text in values]
        n = self.source.choice((0, 1, 5, 11, len(values) - 1, len(values) // 2))
        self.metadata[f"tokenizer.ggml.{name}"] = Typed(
            writer.I32 if name == "token_type" else writer.STRING, [*values][:n]
        )
        return f"{n} {name}"

    def _tensor(self) -> int:
        return self.source.randrange(len(self.tensors)) if self.tensors else -1

    def _replace(self, place: int, **fields: Any) -> str:
        if place < 0:
            return "nothing"
        self.tensors[place] = self.tensors[place]._replace(**fields)
        fields.pop("data", None)
        return f"{self.tensors[place].name}: {str(fields)[:80]}"

    def _dims(self) -> str:
        place = self._tensor()
        dims = list(self.tensors[place].dims) if self.tensors else []
        change = self.source.randrange(5)
        if change == 0:
            dims.reverse()
        elif change == 1:
            dims.append(1)
        elif change == 2:
            dims = dims[:-1]
        elif dims:
            dims[self.source.randrange(len(dims))] = self.source.choice((*WHOLES, 1 << 40, 1 << 63))
        fields: dict[str, Any] = {"dims": dims}
        n_bytes = 4 * math.prod(dims)
        if self.source.random() < 0.5 and n_bytes < 1 << 20:
            fields["data"] = self.source.randbytes(n_bytes)
        return self._replace(place, **fields)

    def _type(self) -> str:
        sizes = {kind: size[1:] for kind, size in TENSOR_TYPES.items()} | STRANGE_TYPES
        kind = self.source.choice((*sizes, 4, 31, 43, 255))
        place = self._tensor()
        n_block, n_bytes = sizes.get(kind, (1, 4))
        n_weights = math.prod(self.tensors[place].dims) if self.tensors else 0
        if n_weights >= 1 << 22:
            return "nothing"
        return self._replace(
            place, kind=kind, data=self.source.randbytes(n_weights // n_block * n_bytes)
        )

    def _offset(self) -> str:
        offset = self.source.choice((0, 1, 16, 32, 1 << 20, 1 << 62, (1 << 64) - 32))
        return self._replace(self._tensor(), offset=offset)

    def _name(self) -> str:
        names = ("", "x" * 63, "x" * 64, "output.weight", "token_embd.weight", "blk.0.attn_q.bias",
                 "rope_freqs.weight", "blk.99.attn_q.weight", "a\0b")  # fmt: skip
        return self._replace(self._tensor(), name=self.source.choice(names))

    def _drop_tensor(self) -> str:
        place = self._tensor()
        return "nothing" if place < 0 else f"no {self.tensors.pop(place).name}"

    def _count(self) -> str:
        what = self.source.choice(("n_keys", "n_tensors", "version"))
        self.counts[what] = self.source.choice((0, 1, 2, 4, 23, 65536, 1 << 31))
        return f"{what} = {self.counts[what]}"

    def _change_bytes(self, data: bytes) -> bytes:
        n_header = min(len(data), 8192)
        change = self.source.randrange(4)
        self.changes.append(f"bytes changed ({change})")
        if change == 0:
            return data[: self.source.randrange(len(data))]
        changed = bytearray(data)
        end = n_header if change < 3 else len(data)
        for _ in range(self.source.randrange(1, 5)):
            changed[self.source.randrange(end)] = self.source.choice((0, 1, 127, 128, 255))
        return bytes(changed)


class Mutant(NamedTuple):
    """A file's bytes, and how it was changed."""

    data: bytes
    changes: list[str]


def with_tokenizer(metadata: dict[str, Value], kind: str) -> dict[str, Value]:
    """The metadata with another kind of vocabulary, of the same length."""
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    n_others = len(tokens) - 256
    if kind == "rwkv":
        bytes_ = [repr(bytes([byte]))[2:-1] for byte in range(256)]
    else:
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    others = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"][:n_others]
    others = [f"{text}~" if text in bytes_ else text for text in others]
    byte_type = 1 if kind in ("bert", "rwkv") else 6
    return metadata | {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": others + bytes_,
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (n_others - 3) + [byte_type] * 256,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
    }


_BASES: dict[Shape, tuple[dict[str, Value], list[Tensor]]] = {}


def mutant(seed: int, number: int) -> Mutant:
    """The mutant with that number, always the same."""
    source = random.Random(f"{seed} {number}")
    usual = source.random() < 0.7
    shape = SHAPES[0] if usual else source.choice(SHAPES)
    if shape not in _BASES:
        _BASES[shape] = writer.tiny_llama_parts(shape=shape)
    draft = Draft(source, _BASES[shape])
    if not usual:
        draft.changes.append(str(shape))
    if source.random() < 0.2:
        kind = source.choice(("llama", "llama", "bert", "t5", "rwkv", "plamo2", "gemma4"))
        draft.metadata = with_tokenizer(draft.metadata, kind)
        draft.changes.append(f"a {kind} vocabulary")
    for _ in range(source.choice((1, 1, 1, 2, 2, 3) if usual else (0, 1, 1, 2))):
        draft.change()
    return Mutant(draft.encode(), draft.changes)


# ---- a loader in another process -----------------------------------------------------------


class LoaderDied(Exception):
    """The process that loaded the file has died; the message is its last output."""


class WorkerLoader:
    """Loads each file in a new worker, as the server would, and sends it requests."""

    def __init__(self) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())

    def __call__(self, path: str) -> str:
        self._words.truncate(0)
        process = subprocess.Popen(
            WORKER_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=worker_environment(),
        )
        patience = Patience(process)
        try:
            with patience:
                return self._ask(process, path)
        except (frames.FrameError, OSError):
            raise LoaderDied(patience.verdict or self._cause(process)) from None
        finally:
            process.kill()
            process.communicate()

    def _ask(self, process: "subprocess.Popen[bytes]", path: str) -> str:
        """Loads, completes and embeds. Raises FrameError or OSError when the worker has died."""
        assert process.stdin is not None and process.stdout is not None
        file = read_model_file(path)
        generates, ranker = not file.embeds_only, file.ranker
        send(process, Load(path, generates=generates, ranker=ranker, n_parallel=2, n_threads=1))
        for event in events(process):
            if isinstance(event, LoadFailed):
                return "refused: model"
            if isinstance(event, Ready):
                break
        params = SamplingParams(max_tokens=4, n_logprobs=2, seed=1)
        send(process, Chat(1, (ChatMessage("user", PROBE),), params))
        send(process, Complete(2, (PROBE, "a"), params, echo=True))
        send(process, Embed(3, (PROBE,), query=PROBE if file.ranker else None))
        open_results = [1, 2, 2, 3]
        for event in events(process):
            if isinstance(event, Failed):
                open_results = [number for number in open_results if number != event.id]
            elif isinstance(event, Finished | Embedded | Scored):
                open_results.remove(event.id)
            if not open_results:
                return "served"
        raise AssertionError("unreachable: events() ends with an error")

    def _cause(self, process: "subprocess.Popen[bytes]") -> str:
        status = process.wait()
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        telling = [line for line in lines if "ASSERT" in line or "what()" in line]
        cause = f"signal {-status}" if status < 0 else f"exit {status}"
        return f"{cause}: {(telling or lines or ['no word'])[-1][-200:]}"

    def close(self) -> None:
        """Removes the file with the workers' last output."""
        self._words.close()


class Patience:
    """Ends a process that does not come to an end with something, while a block runs.

    What counts is the time that the process has worked: on a busy machine it may wait long for its
    turn. Only one that does not work either has a limit by the clock.
    """

    LOOK_S = 1.0

    def __init__(self, process: "subprocess.Popen[Any]") -> None:
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.verdict: str | None = None  # why it had to be ended

    def __enter__(self) -> "Patience":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        began_s, began_work_s = time.monotonic(), worked_s(self._process.pid)
        while not self._done.wait(self.LOOK_S):
            if worked_s(self._process.pid) - began_work_s > WORK_S:
                self.verdict = f"it worked for {WORK_S:g} s without an end"
            elif time.monotonic() - began_s > WAIT_S:
                self.verdict = f"it did nothing for {WAIT_S:g} s"
            if self.verdict is not None:
                self._process.kill()
                return


def worked_s(pid: int) -> float:
    """Processor time of a process, in seconds; 0 after its end."""
    _, *times = work_of(pid) or (0,)
    return sum(times) / os.sysconf("SC_CLK_TCK")


def send(process: "subprocess.Popen[bytes]", request: Request) -> None:
    """Sends a frame to a worker. Raises OSError when it has died."""
    assert process.stdin is not None
    process.stdin.write(frames.encode(request))
    process.stdin.flush()


def events(process: "subprocess.Popen[bytes]") -> Iterator[Event]:
    """A worker's events. Raises FrameError when it ends, which is too early here."""
    while True:
        event = frames.read(process.stdout, Event)  # type: ignore[arg-type]
        if event is None:
            raise frames.FrameError("the worker ended")
        yield event


# ---- the run -------------------------------------------------------------------------------


def run(seed: int, numbers: Sequence[int], check: Check, loader: Loader) -> Counter[str]:
    """Tries the mutants and prints each death. Totals: refused, refused by the library, ..."""
    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "mutant.gguf")
        for number in numbers:
            data, changes = mutant(seed, number)
            Path(path).write_bytes(data)
            try:
                check(path)
                totals[loader(path).partition(":")[0] + " by the worker"] += 1
            except ModelFileError:
                totals["refused"] += 1
            except LoaderDied as death:
                totals["deaths"] += 1
                print(f"seed {seed} number {number}: {death} ({'; '.join(changes)})", flush=True)
    return totals


def main() -> int:
    """The command; 1 when more than one file in ten thousand ended its worker."""
    parser = argparse.ArgumentParser(description="Broken model files against the pre-check.")
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one mutant")
    parser.add_argument("--keep", help="write that mutant to a file instead of loading it")
    parser.add_argument("--unchecked", action="store_true", help="load without the pre-check")
    options = parser.parse_args()
    if options.keep:
        Path(options.keep).write_bytes(mutant(options.seed, options.only).data)
        return 0
    numbers = range(options.count) if options.only is None else [options.only]
    check = _accept if options.unchecked else read_model_file
    return int(_run_and_print(options.seed, numbers, check) * 10_000 > len(numbers))


def _accept(path: str) -> None:
    """No check at all, to show what the pre-check prevents."""


def _run_and_print(seed: int, numbers: Sequence[int], check: Check) -> int:
    """How many of them ended a worker."""
    loader = WorkerLoader()
    start_s = time.monotonic()
    try:
        totals = run(seed, numbers, check, loader)
    finally:
        loader.close()
    print(f"seed {seed}: {len(numbers):,} mutants in {time.monotonic() - start_s:.0f} s: "
          f"{totals['refused']:,} refused, {totals['served by the worker']:,} served, "
          f"{totals['refused by the worker']:,} refused by the worker, "
          f"{totals['deaths']:,} deaths")  # fmt: skip
    return totals["deaths"]


if __name__ == "__main__":
    raise SystemExit(main())
