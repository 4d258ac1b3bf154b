"""What memory held of prompts that were read, kept so that nobody reads them again.

A checkpoint is a beginning of a prompt and the state that llama.cpp's memory had behind it. One
in memory serves models whose memory cannot be cut, or is what a lane held that nobody uses just
now; one in a file survives a restart. Knows no context and no lanes: a state is bytes. Methods
belong to the engine thread.
"""

import hashlib
import os
import queue
import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lmlite.worker.memory.lanes import cut_before_picture, n_common

MIN_IN_MEMORY = 64  # tokens that must have been read anew for a checkpoint in memory
MIN_IN_FILE = 256  # and for one in a file: below that, reading them again is as good
MIN_PARKED = 16  # and for what a lane held

Say = Callable[[str], None]  # takes a line for people


@dataclass(eq=False)
class Checkpoint:
    """The first tokens of a prompt, and where their state is."""

    tokens: list[int]
    n_bytes: int  # that it takes of the store
    state: bytes | None = None  # None: in the file
    path: Path | None = None
    is_gone: bool = False  # it has no file, or is to have none


class Checkpoints:
    """Checkpoints in memory, the least recently used first."""

    min_tokens = MIN_IN_MEMORY

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: list[Checkpoint] = []

    def best(self, prompt: Sequence[int], can_cut: bool) -> tuple[int, Checkpoint | None]:
        """How many tokens of the prompt a checkpoint can give, at most all but one; and which.

        Where memory cannot be cut, only one that the prompt begins with as a whole.
        """
        best: tuple[int, Checkpoint | None] = (0, None)
        for checkpoint in self._kept:
            n = cut_before_picture(
                prompt, min(n_common(checkpoint.tokens, prompt), len(prompt) - 1)
            )
            if n > best[0] and (can_cut or n == len(checkpoint.tokens)):
                best = n, checkpoint
        return best

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether there is one of exactly these tokens."""
        return any(checkpoint.tokens == tokens for checkpoint in self._kept)

    def load(self, checkpoint: Checkpoint) -> bytes | None:
        """Its state, and from now on it was used last. None: it is gone."""
        self._kept.remove(checkpoint)
        self._kept.append(checkpoint)
        return checkpoint.state

    def add(self, tokens: list[int], state: bytes) -> None:
        """Keeps a state; those that nobody used for longest make room."""
        if len(state) > self.max_bytes:
            return
        self._kept.append(Checkpoint(tokens, len(state), state))
        self._shrink()

    def close(self) -> None:
        """Nothing is left to do."""

    @property
    def n_bytes(self) -> int:
        """What they take, all together."""
        return sum(checkpoint.n_bytes for checkpoint in self._kept)

    def _shrink(self) -> None:
        while self.n_bytes > self.max_bytes:
            self._drop(self._kept[0])

    def _drop(self, checkpoint: Checkpoint) -> None:
        self._kept.remove(checkpoint)


class ParkedLanes(Checkpoints):
    """What lanes held that nobody uses just now, outside of the cells that attention looks at."""

    min_tokens = MIN_PARKED

    def has_room(self, n_bytes: int) -> bool:
        """Whether nothing has to leave for it."""
        return self.n_bytes + n_bytes <= self.max_bytes

    def closest(self, prompt: Sequence[int]) -> list[int]:
        """The tokens that have most in common with a prompt."""
        kept = (checkpoint.tokens for checkpoint in self._kept)
        return max(kept, key=lambda tokens: n_common(tokens, prompt), default=[])

    def add(self, tokens: list[int], state: bytes) -> None:
        """Keeps a state in place of those that it goes on from."""
        for checkpoint in list(self._kept):
            if n_common(checkpoint.tokens, tokens) == len(checkpoint.tokens):
                self._drop(checkpoint)
        super().add(tokens, state)


# ---- in files ------------------------------------------------------------------------------

MAGIC = b"lmlite checkpoint 2\n"
SUFFIX = ".checkpoint"
TOKEN_BYTES = 8  # ids of pictures need more than four
SAMPLE = 1 << 20  # bytes of a file that are compared at each of three places
_DIGEST = hashlib.blake2b(b"").digest_size
_HEAD = struct.Struct(f"<{len(MAGIC)}s{_DIGEST}s{_DIGEST}sIQ")  # then the tokens, then the state


class _Head(NamedTuple):
    """What a file begins with."""

    magic: bytes
    identity: bytes  # of model, library and context: `identity_of`
    digest: bytes  # of all that follows this head
    n_tokens: int
    n_state: int  # bytes

    @property
    def n_bytes(self) -> int:
        """How long the whole file has to be."""
        return _HEAD.size + TOKEN_BYTES * self.n_tokens + self.n_state


class CheckpointFiles(Checkpoints):
    """Checkpoints in a folder, which several servers and models may share.

    A file is written beside its place and renamed, so that it is whole or not there; whatever
    cannot be used is left out with a line that says so. The times of the files tell which was
    used last.
    """

    min_tokens = MIN_IN_FILE

    def __init__(self, folder: Path, max_bytes: int, identity: bytes, say: Say) -> None:
        """Finds what the folder holds for this identity. Raises OSError."""
        super().__init__(max_bytes)
        self._folder, self._identity, self._say = folder, identity, say
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_leftovers()
        found = [(path.stat().st_mtime_ns, path) for path in folder.glob(f"*{SUFFIX}")]
        for _, path in sorted(found):
            self._read_entry(path)
        # One at a time: a prompt that comes while another is written is not kept.
        self._writing: queue.Queue[Checkpoint | None] = queue.Queue(maxsize=1)
        self._writer = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
        self._writer.start()

    def load(self, checkpoint: Checkpoint) -> bytes | None:
        """The state, if the file is as it was written."""
        state = checkpoint.state
        if state is not None:  # it is still being written
            return state
        assert checkpoint.path is not None
        try:
            data = checkpoint.path.read_bytes()
            os.utime(checkpoint.path)
        except OSError as err:
            self._refuse(checkpoint, err.strerror or str(err))
            return None
        body = memoryview(data)[_HEAD.size :]
        if len(data) != checkpoint.n_bytes or _head_of(data).digest != _digest_of(body):
            self._refuse(checkpoint, "it is damaged")
            return None
        super().load(checkpoint)
        return bytes(body[TOKEN_BYTES * len(checkpoint.tokens) :])

    def add(self, tokens: list[int], state: bytes) -> None:
        """Has the file written by a thread of its own, unless that is busy with another."""
        packed = array("q", tokens).tobytes()
        n_bytes = _HEAD.size + len(packed) + len(state)
        if n_bytes > self.max_bytes:
            return
        name = hashlib.blake2b(self._identity + packed, digest_size=16).hexdigest()
        checkpoint = Checkpoint(tokens, n_bytes, state, self._folder / f"{name}{SUFFIX}")
        try:
            self._writing.put_nowait(checkpoint)
        except queue.Full:
            return
        self._kept.append(checkpoint)
        self._shrink()

    def close(self) -> None:
        """Waits for what is being written."""
        self._writing.put(None)
        self._writer.join()

    # ---- the folder ------------------------------------------------------------------------

    def _remove_leftovers(self) -> None:
        """What a process that was killed had begun to write."""
        for path in self._folder.glob(f"*{SUFFIX}.*.tmp"):
            pid = path.name.split(".")[-2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)

    def _read_entry(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                n_bytes = os.fstat(file.fileno()).st_size
                head = _head_of(file.read(_HEAD.size))
                packed = file.read(TOKEN_BYTES * head.n_tokens)
        except (OSError, ValueError) as err:
            self._say(f"{path.name} is ignored: {err}")
            return
        is_whole = head.n_bytes == n_bytes
        if not is_whole:
            self._say(f"{path.name} is ignored: it has {n_bytes:,} of {head.n_bytes:,} bytes")
        # A broken one and another model's match no prompt, but they take room.
        is_ours = is_whole and head.identity == self._identity
        tokens = array("q", packed).tolist() if is_ours else []
        self._kept.append(Checkpoint(tokens, n_bytes, path=path))

    def _refuse(self, checkpoint: Checkpoint, reason: str) -> None:
        assert checkpoint.path is not None
        self._say(f"{checkpoint.path.name} is ignored: {reason}")
        self._kept.remove(checkpoint)

    def _drop(self, checkpoint: Checkpoint) -> None:
        super()._drop(checkpoint)
        if checkpoint.is_gone:  # it could not be written, and its place may be another's
            return
        checkpoint.is_gone = True  # before the file is removed: the writer looks behind it
        assert checkpoint.path is not None
        checkpoint.path.unlink(missing_ok=True)

    # ---- the writer's thread ---------------------------------------------------------------

    def _write_all(self) -> None:
        while (checkpoint := self._writing.get()) is not None:
            try:
                self._write(checkpoint)
            except OSError as err:
                checkpoint.tokens, checkpoint.is_gone = [], True  # from now on it matches nothing
                self._say(f"no checkpoint is written to {self._folder}: {err.strerror}")
            checkpoint.state = None

    def _write(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.path is not None and checkpoint.state is not None
        packed = array("q", checkpoint.tokens).tobytes()
        digest = _digest_of(packed, checkpoint.state)
        head = _Head(MAGIC, self._identity, digest, len(checkpoint.tokens), len(checkpoint.state))
        beside = checkpoint.path.with_name(f"{checkpoint.path.name}.{os.getpid()}.tmp")
        try:
            with open(beside, "wb", opener=_private) as file:
                file.writelines((_HEAD.pack(*head), packed, checkpoint.state))
            beside.replace(checkpoint.path)
            if checkpoint.is_gone:
                checkpoint.path.unlink(missing_ok=True)
        finally:
            beside.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # a prompt can be read back from it


def _head_of(data: bytes) -> _Head:
    """Raises ValueError for what is none of ours."""
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        raise ValueError("it is no checkpoint")
    return _Head._make(_HEAD.unpack_from(data))


def _digest_of(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b()
    for part in parts:
        digest.update(part)
    return digest.digest()


def identity_of(paths: Sequence[str], *parameters: object) -> bytes:
    """What a state depends on, in 64 bytes: these files, the model's and the library's, and more.

    Of each file its length and a megabyte from its begin, middle and end: two files that agree
    there and differ elsewhere are not made by accident. Raises OSError.
    """
    digest = hashlib.blake2b(repr(parameters).encode())
    for path in paths:
        with open(path, "rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            digest.update(struct.pack("<Q", n_bytes))
            for place in (0, n_bytes // 2, max(0, n_bytes - SAMPLE)):
                file.seek(place)
                digest.update(file.read(SAMPLE))
    return digest.digest()
