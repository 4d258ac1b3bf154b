"""Reads the header of an untrusted GGUF file: keys, values, and the place of each tensor's weights.

The file is read from front to back and never mapped, because truncating a mapped file would kill
this process. Each length is checked against the bytes that are left before it is used. This module
checks only the format; `file.py` checks the values.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from lmlite.errors import ModelFileError

MAX_COUNT = 65_536  # of keys, and of tensors
MAX_HEADER_BYTES = 128 << 20  # everything before the weights; the largest known header has 16 MiB
MAX_KEY_BYTES = 1024
MAX_NAME_BYTES = 63  # GGML_MAX_NAME without the final zero
MAX_SIZE = 1 << 26  # largest number from which sizes are computed
MAX_STRINGS = 1 << 21  # in all arrays together, to limit the time; the largest known has 0.8 M
ALIGNMENT = 32  # ggml's default, and its minimum for weights in a mapped file

# enum gguf_type
UINT16, BOOL, STRING, ARRAY = 2, 7, 8, 9
_LETTERS = {0: "B", 1: "b", UINT16: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q",
            11: "q", 12: "d"}  # fmt: skip

# enum ggml_type -> name, weights per block, bytes per block. Only types that weights may have: for
# integers, F64, Q8_1 and Q8_K the library would call a null pointer.
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
_EXPERT_TABLE = re.compile(r"blk\.\d+\.ffn_gate_tid2eid\.weight")  # token -> experts: 32-bit ids
_INT32_TENSOR = ("I32", 1, 4)

# First bytes of other files that users often try to load.
_NOT_MODELS = {
    b"<": "is a web page, not a GGUF file",
    b"version https://git-lfs": "is a Git LFS pointer, not the model that it stands for",
    b"PK": "is a zip or PyTorch file, not a GGUF file",
}


class Fault(Exception):
    """A fault of a file. Its message continues a sentence that starts with "it": "is empty"."""


def refusal(path: str, fault: object) -> ModelFileError:
    """The error for a client: the file's name and the fault."""
    name = os.fsencode(os.path.basename(path)).decode(errors="backslashreplace")
    return ModelFileError(f"{name or path} cannot be loaded: it {fault}")


class Value(NamedTuple):
    """A metadata value with its bytes as in the file."""

    kind: int  # enum gguf_type; for an array, the type of its elements
    n: int | None  # number of elements of an array; None for a single value
    data: bytes  # empty for an array of strings: it is checked but not stored

    def numbers(self) -> tuple[float, ...]:
        """The elements of the array, or the single value; empty for strings."""
        if self.kind == STRING:
            return ()
        n = 1 if self.n is None else self.n
        return struct.unpack(f"<{n}{_LETTERS[self.kind]}", self.data)


class Metadata(dict[str, Value]):
    """The keys of a header. Methods raise Fault if a value has the wrong type or is out of range.

    If a key begins with a dot, methods add the architecture before it.
    """

    architecture = ""

    def full(self, key: str) -> str:
        """The key as it is written in the file."""
        return self.architecture + key if key.startswith(".") else key

    def find(self, key: str) -> Value | None:
        """The value, unchecked; None if the key is absent."""
        return self.get(self.full(key))

    def text(self, key: str) -> str | None:
        """A string; None if the key is absent."""
        value = self.find(key)
        if value is None:
            return None
        if value.kind != STRING or value.n is not None:
            raise Fault(f"has a {self.full(key)} that is not a string")
        # In C a string ends at its first zero byte, so checks must look at this part, too.
        return value.data.split(b"\0", 1)[0].decode(errors="replace")

    def wholes(self, key: str, low: int, high: int) -> list[int]:
        """The whole numbers of a list, or a single one; [] if the key is absent."""
        value = self.find(key)
        if value is None:
            return []
        n = 1 if value.n is None else value.n
        numbers = value.numbers() if n <= MAX_COUNT else ()
        wholes = [int(number) for number in numbers if isinstance(number, int)]
        if len(wholes) < n or any(not low <= number <= high for number in wholes):
            raise Fault(
                f"has a {self.full(key)} that is not a whole number from {low:,} to {high:,}"
            )
        return wholes

    def whole(self, key: str, low: int, high: int) -> int | None:
        """A single whole number; None if the key is absent."""
        if self.is_list(key):
            raise Fault(f"has a list for {self.full(key)}, which is one number")
        return next(iter(self.wholes(key, low, high)), None)

    def is_list(self, key: str) -> bool:
        """Whether the key is present and its value is an array."""
        value = self.find(key)
        return value is not None and value.n is not None

    def need(self, key: str, low: int, high: int) -> int:
        """A single whole number. Raises Fault if the key is absent."""
        number = self.whole(key, low, high)
        if number is None:
            raise Fault(f"has no {self.full(key)}")
        return number

    def has(self, *keys: str) -> bool:
        """Whether one of the keys is present."""
        return any(self.full(key) in self for key in keys)

    def largest(self, key: str, default: int = 0) -> int:
        """A size, or the largest in a list of sizes."""
        return max(self.wholes(key, 0, MAX_SIZE), default=default)

    def per_layer(
        self, key: str, n_layer: int, low: int = 0, high: int = MAX_SIZE, default: int = 0
    ) -> list[int]:
        """One number for each layer. In the file: a list, or a single number for all layers."""
        numbers = self.wholes(key, low, high) or [default]
        if not self.is_list(key):
            return numbers[:1] * n_layer
        if len(numbers) != n_layer:
            raise Fault(f"has {len(numbers):,} values of {self.full(key)} for {n_layer} layers")
        return numbers


class Tensor(NamedTuple):
    """A tensor's line in the header; the weights themselves are not read."""

    name: str
    dims: tuple[int, ...]
    type_name: str
    n_weights: int
    n_bytes: int
    offset: int  # from the start of the weights


@dataclass
class Header:
    """Everything before the weights of one file."""

    path: str
    status: os.stat_result
    metadata: Metadata
    tokens: list[bytes]  # the vocabulary, the only array of strings that is stored
    tensors: list[Tensor]


def read_header(path: str) -> Header:
    """Reads one file's header and checks its format. Raises ModelFileError."""
    try:
        # Opening a pipe blocks, and reading a device may never end. So the type is checked before
        # opening, and again afterwards, because the path may lead to a different file by then.
        _require_regular(os.stat(path))
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=1 << 18) as file:
            status = os.fstat(fd)
            _require_regular(status)
            header = _parse(path, file, status)
            if identity(os.fstat(fd)) != identity(status):
                raise Fault("changed while it was read")
        return header
    except FileNotFoundError:
        raise refusal(path, "does not exist") from None
    except (OSError, ValueError) as err:
        raise refusal(path, f"cannot be read ({getattr(err, 'strerror', err)})") from None
    except Fault as fault:
        raise refusal(path, fault) from None


class _Reader:
    """Reads a header from front to back. Checks each length against the bytes that are left."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self._file = file
        self._n_left = min(n_bytes, MAX_HEADER_BYTES)
        self._is_whole = n_bytes <= MAX_HEADER_BYTES
        self._n_strings_left = MAX_STRINGS
        self.tokens: list[bytes] = []

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        self.require(n)
        data = self._file.read(n)
        if len(data) < n:
            raise Fault("was cut short while it was read")
        self._n_left -= n
        return data

    def require(self, n: int) -> None:
        """Raises Fault if fewer than n bytes are left."""
        if n > self._n_left:
            raise Fault("ends in the middle of its header" if self._is_whole else
                         f"has a header of more than {MAX_HEADER_BYTES:,} bytes")  # fmt: skip

    def number(self, letter: str) -> int:
        """A whole number. `letter`: its type in the module `struct`."""
        layout = struct.Struct("<" + letter)
        number: int = layout.unpack(self.take(layout.size))[0]
        return number

    def count(self, what: str) -> int:
        """The number of keys or tensors that follow."""
        n = self.number("Q")
        if n > MAX_COUNT:
            raise Fault(f"claims {n:,} {what}, of {MAX_COUNT:,} at most")
        return n

    def string(self, n_max: int = MAX_HEADER_BYTES) -> bytes:
        """A string: its length, then that many bytes."""
        n = self.number("Q")
        self.require(n)
        if n > n_max:
            raise Fault(f"has a name of {n:,} bytes, of {n_max:,} at most")
        return self.take(n)

    def walk_strings(self, n: int, kept: list[bytes] | None) -> None:
        """Reads n strings. Up to a million iterations, so `take` and `number` are inlined."""
        self._n_strings_left -= n
        self.require(8 * n)
        if self._n_strings_left < 0:
            raise Fault(f"has more than {MAX_STRINGS:,} strings")
        read, n_left = self._file.read, self._n_left
        for _ in range(n):
            size = int.from_bytes(read(8), "little")
            n_left -= 8 + size
            if n_left < 0:
                self.require(self._n_left + 1)
            text = read(size)
            if kept is not None:
                kept.append(text)
        self._n_left = n_left

    def value(self, key: str) -> Value:
        """A key's value. An array of arrays is refused, as an unknown type."""
        kind = self.number("I")
        n = None
        if kind == ARRAY:
            kind, n = self.number("I"), self.number("Q")
        if kind == STRING and n is None:
            return Value(kind, None, self.string())
        if kind == STRING and n is not None:
            self.walk_strings(n, self.tokens if key == "tokenizer.ggml.tokens" else None)
            return Value(kind, n, b"")
        if kind not in _LETTERS:
            raise Fault(f"gives {key} the unknown type {kind}")
        n_elements = 1 if n is None else n
        return Value(kind, n, self.take(n_elements * struct.calcsize("<" + _LETTERS[kind])))


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise Fault("is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise Fault("is not a regular file")
    if status.st_size == 0:
        raise Fault("is empty")


def identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """(device, inode, size, mtime_ns): differs after any change to the file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _parse(path: str, file: BinaryIO, status: os.stat_result) -> Header:
    _check_magic(file)
    reader = _Reader(file, status.st_size)
    reader.take(8)
    n_tensors, n_keys = reader.count("tensors"), reader.count("keys")
    metadata = Metadata()
    for _ in range(n_keys):
        key = reader.string(n_max=MAX_KEY_BYTES).decode(errors="replace")
        if not key or "\0" in key:  # in C the key would end at the zero
            raise Fault(f"has a key without a proper name: {key!r}")
        if key in metadata:
            raise Fault(f"has the key {key} twice")
        metadata[key] = reader.value(key)
    tensors = [_parse_tensor(reader) for _ in range(n_tensors)]
    _check_places(tensors, metadata, file.tell(), status.st_size)
    return Header(path, status, metadata, reader.tokens, tensors)


def _check_magic(file: BinaryIO) -> None:
    start = file.peek(64)[:64]  # type: ignore[attr-defined]
    for beginning, fault in _NOT_MODELS.items():
        if start.lstrip().startswith(beginning):
            raise Fault(fault)
    if start[:4] != b"GGUF":
        raise Fault("does not begin with GGUF")
    version = int.from_bytes(start[4:8], "little")
    if version >= 1 << 16:
        raise Fault("is a big-endian GGUF file, which only big-endian machines can load")
    if version not in (2, 3):
        raise Fault(f"is GGUF version {version}; 2 and 3 can be loaded")


def _parse_tensor(reader: _Reader) -> Tensor:
    name = reader.string(n_max=MAX_NAME_BYTES).decode(errors="replace")
    n_dims = reader.number("I")
    if not 1 <= n_dims <= 4:
        raise Fault(f"has the tensor {name!r} with {n_dims:,} dimensions")
    dims = [reader.number("Q") for _ in range(n_dims)]
    if not all(1 <= n <= 1 << 32 for n in dims):
        raise Fault(f"has the tensor {name!r} of the impossible shape {dims}")
    kind, offset = reader.number("I"), reader.number("Q")
    is_table = kind == 26 and _EXPERT_TABLE.fullmatch(name)
    known = _INT32_TENSOR if is_table else TENSOR_TYPES.get(kind)
    if known is None:
        raise Fault(f"has the tensor {name!r} of type {kind}, which weights cannot have")
    type_name, n_block, n_block_bytes = known
    if dims[0] % n_block:
        raise Fault(
            f"has the tensor {name!r} with rows of {dims[0]:,}, not a multiple of {n_block}"
        )
    n_weights = math.prod(dims)
    n_bytes = n_weights // n_block * n_block_bytes
    return Tensor(name, tuple(dims), type_name, n_weights, n_bytes, offset)


def _check_places(tensors: list[Tensor], metadata: Metadata, header_end: int, n_bytes: int) -> None:
    """Checks that the weights follow one after the other, aligned, and end inside the file."""
    alignment = metadata.whole("general.alignment", ALIGNMENT, 1 << 20) or ALIGNMENT
    if alignment & (alignment - 1):
        raise Fault(f"has the alignment {alignment}, which is not a power of two")
    start = header_end + -header_end % alignment
    end = 0
    for tensor in tensors:
        if tensor.offset != end:
            raise Fault(f"has the tensor {tensor.name!r} at {tensor.offset:,} instead of {end:,}")
        if start + end + tensor.n_bytes > n_bytes:
            raise Fault(f"ends before the weights of {tensor.name!r}; the download is incomplete")
        end += tensor.n_bytes + -tensor.n_bytes % alignment
