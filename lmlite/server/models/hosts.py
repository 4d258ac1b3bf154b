"""Hosts that hold layers of a model: asked before a worker connects to them, and after it ended.

llama.cpp ends a worker whose host fails, and says little. So the supervisor asks, and names the
host at fault. Each host serves one client at a time: nobody asks while a worker is connected.

The protocol is that of ggml-rpc.cpp: a command's number in a byte, the size of its data in 8 bytes,
the data; a reply has its size and its data. Numbers are little-endian.
"""

import socket
import struct
import time
from typing import NamedTuple

from lmlite.gguf.memory_estimate import Estimate, in_words
from lmlite.messages import Json, Load

TIMEOUT_S = 3.0  # for all answers of a host
VERSION = 7  # RPC_PROTO_MAJOR_VERSION
MAX_DEVICES = 64
ABORT = "ggml-rpc"  # in the last words of a worker that a host has failed
_HELLO, _DEVICE_COUNT, _DEVICE_MEMORY = 14, 15, 11  # enum rpc_cmd


class HostUnavailable(Exception):
    """A host cannot be used now; the message names it and the reason."""


class _Answer(NamedTuple):
    memories: tuple[tuple[int, int], ...] = ()  # free and total bytes of each device
    fault: str | None = None  # why the host cannot be used

    @property
    def n_free(self) -> int:
        return sum(n_free for n_free, _ in self.memories)


class Hosts:
    """The hosts of one model. The supervisor's thread asks; any thread may read `states`."""

    def __init__(self, load: Load, estimate: Estimate) -> None:
        self._load, self._estimate = load, estimate
        self.names = load.hosts
        self.states: list[Json] = []  # for /health, as of the last check

    def check(self) -> None:
        """Asks every host. Raises HostUnavailable for the first that cannot be used."""
        answers = [ask(address) for address in self._load.hosts]
        states = []
        for address, answer, n_bytes in zip(
            self._load.hosts, answers, self._needs(answers), strict=True
        ):
            fault = answer.fault
            if n_bytes is not None and n_bytes > answer.n_free:
                has = f"{in_words(answer.n_free)} are free"
                fault = f"its layers would take {in_words(n_bytes)}, and {has}"
            state: Json = {"host": address, "status": "unavailable" if fault else "ready"}
            state |= {"reason": fault} if fault else {}
            if answer.memories:
                n_total = sum(total for _, total in answer.memories)
                memory = {"estimated": n_bytes, "free": answer.n_free, "total": n_total}
                state["memory"] = memory
            states.append(state)
        self.states = states
        for state in states:
            if "reason" in state:
                raise HostUnavailable(f"host {state['host']} cannot be used: {state['reason']}")

    def fault(self) -> str | None:
        """The first host that cannot be used now, and why."""
        try:
            self.check()
        except HostUnavailable as err:
            return str(err)
        return None

    def _needs(self, answers: list[_Answer]) -> list[int | None]:
        """Bytes for each host: its layers' share of the model, and all buffers. None: unknown."""
        load, sizes = self._load, self._estimate
        free = [n_free for answer in answers for n_free, _ in answer.memories]
        shares = (
            [*load.tensor_split, *[0.0] * len(free)][: len(free)] if load.tensor_split else free
        )
        # A GPU here takes layers, too, and --gpu-layers leaves some to the processor.
        is_known = not (load.uses_gpu or load.n_gpu_layers >= 0 or any(a.fault for a in answers))
        if not is_known or not sum(shares):
            return [None] * len(answers)
        spread, at = sizes.weights + sizes.cells + sizes.states, 0
        needs: list[int | None] = []
        for answer in answers:
            share = sum(shares[at : at + len(answer.memories)]) / sum(shares)
            at += len(answer.memories)
            needs.append(round(share * spread) + (sizes.buffers + sizes.logits if share else 0))
        return needs


def ask(address: str, timeout_s: float = TIMEOUT_S) -> _Answer:
    """What a host says of itself."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout_s) as sock:
            return _Answer(_memories(sock, time.monotonic() + timeout_s))
    except TimeoutError:
        return _Answer(fault="it is silent: stopped, out of reach, or busy with another client")
    except OSError as err:
        return _Answer(fault=err.strerror or str(err))
    except ValueError:
        return _Answer(fault="it does not speak as llama.cpp's RPC of this version does")


def _memories(sock: socket.socket, deadline_s: float) -> tuple[tuple[int, int], ...]:
    """Free and total bytes of each device. Raises OSError, and ValueError for nonsense."""

    def received(form: str) -> tuple[int, ...]:
        data, n_bytes = b"", struct.calcsize(form)
        while len(data) < n_bytes:
            sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            if not (piece := sock.recv(n_bytes - len(data))):
                raise ValueError("the connection was closed")
            data += piece
        return struct.unpack(form, data)

    def asked(command: int, data: bytes, form: str) -> tuple[int, ...]:
        sock.sendall(struct.pack("<BQ", command, len(data)) + data)
        if received("<Q") != (struct.calcsize(form),):
            raise ValueError("an answer of another size")
        return received(form)

    # The data, and the rest of the answer, would offer a faster transport than TCP.
    if asked(_HELLO, bytes(24), "<BBBB24x")[0] != VERSION:
        raise ValueError("another version")
    (n_devices,) = asked(_DEVICE_COUNT, b"", "<I")
    if not 0 < n_devices <= MAX_DEVICES:
        raise ValueError("an unlikely number of devices")
    memories = []
    for device in range(n_devices):
        n_free, n_total = asked(_DEVICE_MEMORY, struct.pack("<I", device), "<QQ")
        memories.append((n_free, n_total))
    return tuple(memories)
