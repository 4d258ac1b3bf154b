"""A worker without a model: speaks the frames, and does what the last message says.

"echo TEXT" answers in one delta per word, "die SIGNAL ..." ends by that signal, "bytes HEX" writes
something that may be no frame, "hang" answers nothing, "queue" says so, "refuse" is a BadRequest,
"wait PATH" and "fail PATH" go on when somebody writes to that pipe. Started with the argument
"crash" it ends before it is ready, with "broken" it says that the model cannot be loaded, with
"wait" it is half loaded until somebody writes to the pipe that the Load names, with "stop" it
stops itself while it loads.
"""

import os
import signal
import sys
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


def send(event: Event) -> None:
    sys.stdout.buffer.write(frames.encode(event))
    sys.stdout.buffer.flush()


def answer(chat: Chat) -> None:
    verb, _, rest = chat.messages[-1].content.partition(" ")
    match verb:
        case "echo":
            echo(chat, rest)
        case "refuse":
            send(Failed(chat.id, "BadRequest", "refused", "messages"))
        case "bytes":
            os.write(1, bytes.fromhex(rest))
        case "queue":
            send(Queued(chat.id, 0, 2))
        case "die":
            send(Started(chat.id, 0, 3, 0))
            send(Delta(chat.id, 0, "dying"))
            os.kill(os.getpid(), getattr(signal, rest.split()[0]))
        case "wait":
            wait(chat, rest)
            echo(chat, "done")
        case "fail":
            wait(chat, rest)
            send(Failed(chat.id, "InternalError", "failed late"))


def wait(chat: Chat, path: str) -> None:
    send(Queued(chat.id, 0, 2))
    send(Reading(chat.id, 0, 512, 1840))
    wait_for_writer(path)


def wait_for_writer(fifo: str) -> None:
    with open(fifo):  # opens when the other end is opened
        pass


def echo(chat: Chat, text: str) -> None:
    if chat.trace:
        send(Prompted(chat.id, 0, f"prompt of {text}"))
    send(EngineState(0, 1, 512, 100, 12, 4096, 7, 0.5, (0, 0, 1, 1, 2, 2, 3, 7, 7, 7, 7)))
    for index in range(chat.n):
        send(Started(chat.id, index, 3, 1))
        words = text.split(" ")
        for i, word in enumerate(words):
            send(Delta(chat.id, index, word if i == 0 else f" {word}"))
        if chat.trace:
            send(Returned(chat.id, index, text))
        send(Finished(chat.id, index, "stop", len(words) + 1))


def main(mode: str) -> None:
    load: Any = frames.read(sys.stdin.buffer, Request)
    if mode == "crash":
        print("GGML_ASSERT(nothing works) failed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    if mode == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "broken":
        send(LoadFailed(f"llama.cpp cannot load {load.model_path}"))
        return
    if mode == "wait":
        send(Loading(0.5))
        wait_for_writer(load.model_path)
    send(Ready(512, 1000, 64, 4, 1, 0, True))
    cancelled = []
    while (request := frames.read(sys.stdin.buffer, Request)) is not None:
        if isinstance(request, Cancel):
            cancelled.append(request.id)
            print(f"cancelled {request.id}", file=sys.stderr, flush=True)
        elif isinstance(request, Chat):
            answer(request)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
