"""A worker without a model. It speaks frames, and obeys the last message of a chat.

    echo TEXT        replies with a delta per word
    tick N SECONDS   replies with N deltas this far apart: their number and the time in nanoseconds
    babble N         first writes N bytes to standard error
    bytes HEX        writes bytes that need not be a frame
    die SIGNAL ...   starts a reply, and ends by the signal
    hang             never replies
    queue            says that the request is queued, and never replies
    wait PATH        replies when somebody writes to the named pipe
    fail PATH        fails then

Any other message is a BadRequest. The process's argument is a mode for loading: "crash" ends it,
"broken" fails, "fragile" fails while there is a file at the model's path, "wait" stays half loaded
until somebody writes to the named pipe at that path, "stop" stops the process.
"""

import contextlib
import heapq
import os
import queue
import signal
import sys
import threading
import time
from typing import Any

from lmlite import frames
from lmlite.messages import (
    Cancel,
    Chat,
    Delta,
    EngineState,
    Event,
    Failed,
    Finished,
    LoadFailed,
    Loading,
    Prompted,
    Queued,
    Reading,
    Ready,
    Request,
    Returned,
    Started,
)

sending = threading.Lock()


def send(event: Event) -> None:
    with sending:
        sys.stdout.buffer.write(frames.encode(event))
        sys.stdout.buffer.flush()


def answer(chat: Chat) -> None:
    verb, _, rest = chat.messages[-1].content.partition(" ")
    match verb:
        case "echo":
            echo(chat, rest)
        case "hang":
            pass
        case "bytes":
            os.write(1, bytes.fromhex(rest))
        case "queue":
            send(Queued(chat.id, 0, 2))
        case "die":
            send(Started(chat.id, 0, 3, 0))
            send(Delta(chat.id, 0, "dying"))
            os.kill(os.getpid(), getattr(signal, rest.split()[0]))
        case "babble":
            sys.stderr.write("x" * int(rest))
            sys.stderr.flush()
            echo(chat, "done")
        case "wait":
            wait(chat, rest)
            echo(chat, "done")
        case "tick":
            n_ticks, gap = rest.split()
            send(Started(chat.id, 0, 3, 0))
            begun.put((time.monotonic(), chat.id, 0, int(n_ticks), float(gap)))
        case "fail":
            wait(chat, rest)
            send(Failed(chat.id, "InternalError", "failed late"))
        case _:
            send(Failed(chat.id, "BadRequest", "refused", "messages"))


def wait(chat: Chat, path: str) -> None:
    send(Queued(chat.id, 0, 2))
    send(Reading(chat.id, 0, 512, 1840))
    wait_for_writer(path)


def wait_for_writer(fifo: str) -> None:
    with open(fifo):  # blocks until the other end is opened
        pass


def echo(chat: Chat, text: str) -> None:
    if chat.trace:
        send(Prompted(chat.id, 0, f"prompt of {text}"))
    send(EngineState(0, 1, 512, 100, 12, 4096, 7, 0.5, (0, 0, 1, 1, 2, 2, 3, 7, 7, 7, 7), 30, 20))
    for index in range(chat.n):
        send(Started(chat.id, index, 3, 1))
        words = text.split(" ")
        for i, word in enumerate(words):
            send(Delta(chat.id, index, word if i == 0 else f" {word}"))
        if chat.trace:
            send(Returned(chat.id, index, text))
        send(Finished(chat.id, index, "stop", len(words) + 1))


Tick = tuple[float, int, int, int, float]  # when due, chat id, number, how many, seconds between
begun: "queue.SimpleQueue[Tick]" = queue.SimpleQueue()


def tick() -> None:
    """Sends every delta when it is due; runs in its own thread."""
    due: list[Tick] = []
    while True:
        wait_s = max(0.0, due[0][0] - time.monotonic()) if due else None
        with contextlib.suppress(queue.Empty):
            heapq.heappush(due, begun.get(timeout=wait_s))
            continue
        at_s, chat_id, number, n_ticks, gap = heapq.heappop(due)
        send(Delta(chat_id, 0, f"{number}:{time.monotonic_ns()} "))
        if number + 1 < n_ticks:
            heapq.heappush(due, (at_s + gap, chat_id, number + 1, n_ticks, gap))
        else:
            send(Finished(chat_id, 0, "stop", n_ticks))


def main(mode: str) -> None:
    load: Any = frames.read(sys.stdin.buffer, Request)
    if mode == "crash":
        print("GGML_ASSERT(nothing works) failed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    if mode == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "broken" or (mode == "fragile" and os.path.exists(load.model_path)):
        send(LoadFailed(f"llama.cpp cannot load {load.model_path}"))
        return
    if mode == "wait":
        send(Loading(0.5))
        wait_for_writer(load.model_path)
    send(Ready(512, 1000, 64, 4, 1, 0, True))
    threading.Thread(target=tick, daemon=True).start()
    cancelled = []
    while (request := frames.read(sys.stdin.buffer, Request)) is not None:
        if isinstance(request, Cancel):
            cancelled.append(request.id)
            print(f"cancelled {request.id}", file=sys.stderr, flush=True)
        elif isinstance(request, Chat):
            answer(request)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
