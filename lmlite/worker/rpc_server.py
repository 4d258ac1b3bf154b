"""A host that holds layers of a model which another machine serves: `lmlite rpc-server`.

    python -m lmlite.worker.rpc_server FOLDER HOST PORT THREADS

serves this machine's devices to one client at a time. The protocol has no keys, and llama.cpp
checks little of what a client sends, so this process goes into the sandbox, too.
"""

import ctypes
import socket
import sys
import threading

from lmlite.worker.guard import sandbox
from lmlite.worker.llama import capi
from lmlite.worker.llama.hosts import keep_alive, sockets
from lmlite.worker.loader import default_n_threads

LOOK_S = 0.02  # between two looks for the socket that the library opens


def serve(lib_path: str, host: str, port: int, n_threads: int) -> None:
    """Serves this machine's GPUs, else its processor. Raises LibraryError.

    Returns only if it cannot listen.
    """
    lib = capi.load(lib_path)
    rpc = capi.load_rpc(lib, lib_path)
    kinds: dict[int, list[int]] = {}
    for index in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(index)
        kinds.setdefault(lib.ggml_backend_dev_type(device), []).append(device)
    gpus = [device for kind in capi.GPU_TYPES for device in kinds.get(kind, ())]
    devices = gpus or kinds[capi.BACKEND_DEVICE_TYPE_CPU]
    threading.Thread(target=_settle, args=(not gpus,), daemon=True).start()
    array = (ctypes.c_void_p * len(devices))(*devices)
    endpoint = f"{host}:{port}".encode()
    rpc.ggml_backend_rpc_start_server(endpoint, None, n_threads, len(devices), array)


def _settle(is_confined: bool) -> None:
    """Waits until the library listens, prepares its socket, and closes the sandbox."""
    pause = threading.Event()
    while not (found := [each for each in sockets() if _listens(each)]):
        pause.wait(LOOK_S)
    (listener,) = found
    keep_alive(listener)
    host, port = listener.getsockname()
    listener.detach()
    if is_confined:  # a GPU's driver needs files and programs
        # Landlock would not cover the thread that accepts.
        for sentence in sandbox.enter(None, writes_are_bound=False, accepts=True):
            print(f"lmlite: {sentence}", file=sys.stderr)
    print(f"lmlite: holds layers for others at {host}:{port}", file=sys.stderr, flush=True)


def _listens(found: socket.socket) -> bool:
    if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return True
    found.detach()
    return False


def main() -> int:
    """Serves until the process is ended. Returns 1 if it cannot."""
    folder, host, port, n_threads = sys.argv[1:]
    try:
        serve(folder, host, int(port), int(n_threads) or default_n_threads())
    except capi.LibraryError as err:
        print(f"lmlite: {err}", file=sys.stderr)
    else:  # the library has said why
        print(f"lmlite: cannot listen at {host}:{port}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
