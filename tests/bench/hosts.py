"""A model over hosts on this machine, with a delay in the way: python -m tests.bench.hosts MODEL.

Prints tokens per second of a prompt and of an answer, and the bytes that each token sends to the
hosts and back. A proxy before each host holds every byte back for the delay, each way.
"""

import contextlib
import queue
import socket
import sys
import threading
import time
from contextlib import ExitStack

from tests.support.rpc_host import RpcHost
from tests.support.server_process import RunningServer

DELAYS_MS = (0, 1, 10)
N_TOKENS = 64
PROMPT = "The grass is green. The sky is blue. " * 50


class Delay:
    """A TCP proxy before a host."""

    def __init__(self, port: int, delay_s: float) -> None:
        self._port, self._delay_s = port, delay_s
        self.n_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            host = socket.create_connection(("127.0.0.1", self._port))
            for source, sink in ((client, host), (host, client)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=self._read, args=(source, pieces), daemon=True).start()
                threading.Thread(target=self._write, args=(sink, pieces), daemon=True).start()

    def _read(
        self, source: socket.socket, pieces: "queue.SimpleQueue[tuple[float, bytes]]"
    ) -> None:
        data = b"."
        while data:
            try:
                data = source.recv(1 << 20)
            except OSError:
                data = b""
            self.n_bytes += len(data)
            pieces.put((time.monotonic() + self._delay_s, data))

    def _write(self, sink: socket.socket, pieces: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
        while (piece := pieces.get())[1]:
            time.sleep(max(0.0, piece[0] - time.monotonic()))
            with contextlib.suppress(OSError):
                sink.sendall(piece[1])
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def measure(model: str, proxies: list[Delay], options: list[str]) -> tuple[float, float, float]:
    """Prompt tokens and tokens per second, and bytes per token."""
    with RunningServer(model, *options, "--parallel", "1") as server:

        def asked(text: str, n_tokens: int) -> tuple[float, int]:
            began_s = time.monotonic()
            body = {"prompt": text, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
            usage = server.post("/v1/completions", **body).json["usage"]
            return time.monotonic() - began_s, usage["prompt_tokens"]

        asked("Once", 8)
        one_s, n_prompt = asked(PROMPT, 1)
        n_before = sum(proxy.n_bytes for proxy in proxies)
        answer_s, _ = asked("Once upon", N_TOKENS)
        n_bytes = sum(proxy.n_bytes for proxy in proxies) - n_before
    return n_prompt / one_s, N_TOKENS / answer_s, n_bytes / N_TOKENS


def main(model: str) -> None:
    print("hosts  delay    prompt      answer      traffic")
    show("none", None, measure(model, [], ["--threads", "1"]))
    for n_hosts in (1, 2):
        for delay_ms in DELAYS_MS:
            with ExitStack() as stack:
                hosts = [stack.enter_context(RpcHost()) for _ in range(n_hosts)]
                proxies = [Delay(host.port, delay_ms / 1000) for host in hosts]
                rpc = ",".join(proxy.address for proxy in proxies)
                show(str(n_hosts), delay_ms, measure(model, proxies, ["--rpc", rpc]))


def show(hosts: str, delay_ms: int | None, found: tuple[float, float, float]) -> None:
    delay = "" if delay_ms is None else f"{delay_ms} ms"
    prompt, answer, n_bytes = found
    print(f"{hosts:6} {delay:>5} {prompt:7.0f}/s {answer:9.1f}/s {n_bytes / 1024:9.1f} KiB/token",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
