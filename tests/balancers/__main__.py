"""Measures affinity against round robin, and prints the table of the manual.

40 conversations of 6 turns go through HAProxy to three servers. All of them are open at once: each
client takes the one that has waited longest, asks its next question, and puts it back. Every prompt
begins with the same system prompt, and every question is new.
"""

import argparse
import queue
import random
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.balancers.fleet import N_SERVERS, Conversation, Reply, balancer
from tests.balancers.programs import program
from tests.support.server_process import RunningServer

N_CONVERSATIONS = 40
N_TURNS = 6
N_CLIENTS = 6
N_WORDS = 40  # of a question
SYSTEM = "You answer questions of visitors of a zoo, briefly and truthfully. " * 6
ROUND_ROBIN = ("balance leastconn", "balance roundrobin")
WORDS = ("animal", "bird", "river", "tree", "house", "winter", "keeper", "water", "food", "night")


def conversations(own_keys: bool, echoes: bool) -> "queue.SimpleQueue[Conversation]":
    """Conversations that have not begun."""
    waiting: queue.SimpleQueue[Conversation] = queue.SimpleQueue()
    for i in range(N_CONVERSATIONS):
        key = f"conversation-{i}" if own_keys else None
        waiting.put(Conversation([{"role": "system", "content": SYSTEM}], key, echoes))
    return waiting


def talk(port: int, waiting: "queue.SimpleQueue[Conversation]") -> list[Reply]:
    """Holds all conversations to their ends."""
    turns: queue.SimpleQueue[random.Random] = queue.SimpleQueue()
    for i in range(N_CONVERSATIONS * N_TURNS):
        turns.put(random.Random(i))
    replies: list[Reply] = []

    def run() -> None:
        while not turns.empty():
            try:
                chance, conversation = turns.get_nowait(), waiting.get()
            except queue.Empty:
                return
            question = "Tell me about " + " ".join(chance.choices(WORDS, k=N_WORDS))
            conversation.turn(port, question, max_tokens=16, temperature=0)
            replies.append(conversation.replies[-1])
            waiting.put(conversation)

    threads = [threading.Thread(target=run) for _ in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def row(name: str, replies: Sequence[Reply]) -> str:
    """A line of the table."""
    firsts = sorted(reply.first_token_s for reply in replies)
    share = sum(reply.n_cached for reply in replies) / sum(reply.n_prompt for reply in replies)
    p50, p99 = (firsts[int(len(firsts) * part)] for part in (0.50, 0.99))
    return f"| {name} | {share:.0%} | {p50:.2f} s | {p99:.2f} s |"


def main() -> None:
    """Serves the model three times anew for each row."""
    parser = argparse.ArgumentParser(prog="python -m tests.balancers", description=__doc__)
    parser.add_argument("model", nargs="*", help="model file (default: the embedded model)")
    given = parser.parse_args()
    if program("haproxy") is None:
        parser.exit(1, "make balancers fetches HAProxy first\n")
    print(
        "| | prompt tokens from memory | first token, p50 | p99 |",
        "| --- | --- | --- | --- |",
        sep="\n",
    )
    for name, own_keys, echoes, change in (
        ("round robin", False, False, ROUND_ROBIN),
        ("affinity, the key of the first reply", False, True, ("", "")),
        ("affinity, a key of the client's own", True, True, ("", "")),
    ):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            servers = [
                stack.enter_context(RunningServer(*given.model, "--ctx", "8192"))
                for _ in range(N_SERVERS)
            ]
            ports = [server.port for server in servers]
            port = stack.enter_context(balancer("haproxy", ports, folder, change))
            replies = talk(port, conversations(own_keys, echoes))
        assert len(replies) == N_CONVERSATIONS * N_TURNS
        print(row(name, replies), flush=True)


if __name__ == "__main__":
    main()
