"""Checkpoints in files, which survive a restart.

A file has a header, the scales of the adapters, the tokens, then the state. It is written under a
temporary name and renamed, so that it is complete or absent. An unusable file is ignored, with a
line in the log. Modification times record when files were last used. Methods belong to the engine
thread; a writer thread writes the files.
"""

import hashlib
import os
import queue
import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lmlite.messages import Scales
from lmlite.worker.memory.checkpoints import Checkpoint, Checkpoints

MAGIC = b"lmlite checkpoint 2\n"
SUFFIX = ".checkpoint"
TOKEN_BYTES = 8  # ids of pictures need more than four; a scale takes as many
SAMPLE = 1 << 20  # bytes of a file that are hashed at each of three places
_DIGEST = hashlib.blake2b(b"").digest_size
_HEAD = struct.Struct(f"<{len(MAGIC)}s{_DIGEST}s{_DIGEST}sIQ")


class _Head(NamedTuple):
    """The header of a file."""

    magic: bytes
    identity: bytes  # of model, library and context, see `identity_of`
    digest: bytes  # of the tokens and the state
    n_tokens: int  # and scales
    n_state: int  # bytes

    @property
    def n_bytes(self) -> int:
        """Length of the whole file."""
        return _HEAD.size + TOKEN_BYTES * self.n_tokens + self.n_state


class CheckpointFiles(Checkpoints):
    """Checkpoints in a folder, which several servers and models may share."""

    min_tokens = 256  # fewer tokens are computed as fast as a file is read

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        identity: bytes,
        warn: Callable[[str], None],
        n_adapters: int = 0,
    ) -> None:
        """Finds existing files of this identity. `warn` logs a line. Raises OSError."""
        super().__init__(max_bytes)
        self._folder, self._identity, self._warn = folder, identity, warn
        self._n_adapters = n_adapters
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_leftovers()
        found = [(path.stat().st_mtime_ns, path) for path in folder.glob(f"*{SUFFIX}")]
        for _, path in sorted(found):
            self._find(path)
        # One at a time: a checkpoint that comes while a file is being written is not kept.
        self._writing: queue.Queue[Checkpoint | None] = queue.Queue(maxsize=1)
        self._writer = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
        self._writer.start()

    def load(self, checkpoint: Checkpoint) -> bytes | None:
        """The state, if the file is intact."""
        state = checkpoint.state
        if state is not None:  # it is still being written
            return state
        try:
            data = checkpoint.path.read_bytes()
            body = memoryview(data)[_HEAD.size :]
            if len(data) != checkpoint.n_bytes or _head_of(data).digest != _digest_of(body):
                raise OSError("it is damaged")
            os.utime(checkpoint.path)
        except (OSError, ValueError) as err:
            self._warn(f"{checkpoint.path.name} is ignored: {err}")
            self.kept.remove(checkpoint)
            return None
        super().load(checkpoint)
        return bytes(body[len(self._packed(checkpoint.tokens, checkpoint.scales)) :])

    def add(self, tokens: list[int], state: bytes, scales: Scales = ()) -> None:
        """Queues the file for writing, unless a file is being written."""
        packed = self._packed(tokens, scales)
        n_bytes = _HEAD.size + len(packed) + len(state)
        name = hashlib.blake2b(self._identity + packed, digest_size=16).hexdigest()
        checkpoint = Checkpoint(tokens, n_bytes, state, scales, self._folder / f"{name}{SUFFIX}")
        if n_bytes <= self.max_bytes and not self._writing.full():
            self._writing.put(checkpoint)
            self._keep(checkpoint)

    def drop(self, checkpoint: Checkpoint) -> None:
        """Also removes its file."""
        super().drop(checkpoint)
        # If writing failed, the file with its name may belong to a later checkpoint.
        if not checkpoint.is_gone:
            checkpoint.is_gone = True  # before the file is removed: the writer checks it afterwards
            checkpoint.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Waits until the current file is written."""
        self._writing.put(None)
        self._writer.join()

    # ---- the folder ------------------------------------------------------------------------

    def _remove_leftovers(self) -> None:
        """Removes unfinished files of killed processes."""
        for path in self._folder.glob(f"*{SUFFIX}.*.tmp"):
            pid = path.name.split(".")[-2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)

    def _find(self, path: Path) -> None:
        """Keeps the file. A broken or a different model's file takes room but serves no prompt."""
        try:
            with path.open("rb") as file:
                n_bytes = os.fstat(file.fileno()).st_size
                head = _head_of(file.read(_HEAD.size))
                packed = file.read(TOKEN_BYTES * head.n_tokens)
        except (OSError, ValueError) as err:
            self._warn(f"{path.name} is ignored: {err}")
            return
        is_complete = head.n_bytes == n_bytes
        if not is_complete:
            self._warn(f"{path.name} is ignored: it has {n_bytes:,} of {head.n_bytes:,} bytes")
        is_ours = is_complete and head.identity == self._identity
        n = TOKEN_BYTES * self._n_adapters
        tokens = array("q", packed[n:]).tolist() if is_ours else []
        scales = tuple(array("d", packed[:n])) if is_ours else ()
        scales = scales if any(scales) else ()
        self.kept.append(Checkpoint(tokens, n_bytes, None, scales, path))

    def _packed(self, tokens: list[int], scales: Scales) -> bytes:
        """The scales of all adapters, and the tokens."""
        numbers = array("d", scales or [0.0] * self._n_adapters)
        return numbers.tobytes() + array("q", tokens).tobytes()

    # ---- the writer's thread ---------------------------------------------------------------

    def _write_all(self) -> None:
        while (checkpoint := self._writing.get()) is not None:
            try:
                self._write(checkpoint)
            except OSError as err:
                checkpoint.tokens, checkpoint.is_gone = [], True  # so that it serves no prompt
                self._warn(f"cannot write a checkpoint to {self._folder}: {err.strerror}")
            checkpoint.state = None

    def _write(self, checkpoint: Checkpoint) -> None:
        packed, state = self._packed(checkpoint.tokens, checkpoint.scales), checkpoint.state or b""
        digest = _digest_of(packed, state)
        head = _Head(MAGIC, self._identity, digest, len(packed) // TOKEN_BYTES, len(state))
        unfinished = checkpoint.path.with_name(f"{checkpoint.path.name}.{os.getpid()}.tmp")
        try:
            with open(unfinished, "wb", opener=_private) as file:
                file.writelines((_HEAD.pack(*head), packed, state))
            unfinished.replace(checkpoint.path)
            if checkpoint.is_gone:
                checkpoint.path.unlink(missing_ok=True)
        finally:
            unfinished.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # private: it contains a prompt


def _head_of(data: bytes) -> _Head:
    """Reads a file's header. Raises ValueError if the file is not a checkpoint."""
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        raise ValueError("it is not a checkpoint")
    return _Head._make(_HEAD.unpack_from(data))


def _digest_of(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b()
    for part in parts:
        digest.update(part)
    return digest.digest()


def identity_of(paths: Sequence[str], *parameters: object) -> bytes:
    """A hash of all that a state depends on: model and library files, and context parameters.

    Hashes each file's length and a megabyte from its beginning, middle and end: different files
    do not agree in these by accident. Raises OSError.
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
