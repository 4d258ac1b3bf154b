"""`lmlite chat`: a conversation in the terminal, or one answer for a script."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from lmlite.child import CannotStart, start
from lmlite.cli.client import Client, NoServerError
from lmlite.cli.conversation import Conversation
from lmlite.cli.flags import CHAT_FLAGS, CommandError, Commands
from lmlite.cli.terminal import Screen, is_line_empty, read_message
from lmlite.server.logs import printable

HELP = """\
/clear         forget the conversation
/system TEXT   set the system prompt; without TEXT, remove it
/image FILE    attach an image to the next message
/model NAME    go on with a different model; without NAME, list them
/stats         show figures of the last answer and of each further one, or no more
/exit          end, as Ctrl-D does
A line that ends in \\ goes on in the next. A space before a slash makes it text.
Ctrl-C stops an answer."""
CUT = "the answer is cut: it reached --max-tokens, or its context is full"
PING_S = 1.0  # how often a server of this program tells why one has to wait
# What --reasoning adds to a request; other values are sent as the effort.
REASONING: dict[str, dict[str, Any]] = {
    "auto": {},
    "off": {"reasoning_effort": "none"},
    "on": {"chat_template_kwargs": {"enable_thinking": True}},
}


def add_to(commands: Commands) -> None:
    """Declares the command."""
    chat = commands.add_parser(
        "chat",
        help="talk to a model",
        description="Talk to a model of the server at --url. If none runs there, or if MODEL is a "
        "file, a server is started for as long as the conversation lasts.",
    )
    chat.add_argument(
        "model", nargs="?", metavar="MODEL", help="name or .gguf file (default: the server's)"
    )
    chat.set_defaults(run=run)
    for flag in CHAT_FLAGS:
        flag.add_to(chat)


def run(given: argparse.Namespace) -> int:
    """Talks until the user ends it, or answers once. Raises CommandError."""
    try:
        question, screen = _question(given), Screen()
        with _server(given, screen) as client:
            conversation = _conversation(given, client)
            if question is None:
                screen.note(f"{client.url}: /help lists the commands")
                Chat(conversation, screen, given.stats).talk()
            else:
                Chat(conversation, screen, given.stats).answer(question)
    except KeyboardInterrupt:
        return 130
    return 0


class Chat:
    """A conversation on the screen."""

    def __init__(self, conversation: Conversation, screen: Screen, has_stats: bool) -> None:
        self._conversation, self._screen, self._has_stats = conversation, screen, has_stats

    def answer(self, question: str) -> None:
        """Shows the answer to a question. Raises CommandError, KeyboardInterrupt."""
        try:
            with contextlib.closing(self._conversation.ask(question)) as pieces:
                for piece in pieces:
                    self._screen.show(piece)
        finally:
            self._screen.end()
        if self._conversation.answer.finish_reason == "length":
            self._screen.note(f"lmlite: {CUT}")
        if self._has_stats:
            self._screen.note(self._conversation.answer.statistics())

    def talk(self) -> None:
        """Answers messages and obeys commands until the user ends it."""
        was_interrupted = False
        while True:
            try:
                message = read_message()
                was_interrupted = False
                if message in ("/exit", "/quit"):
                    return
                self._take(message)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if was_interrupted and is_line_empty():
                    return
                was_interrupted = is_line_empty()
                self._screen.note("Ctrl-C again or Ctrl-D ends the conversation")

    def _take(self, message: str) -> None:
        """Answers a message, or obeys it if it begins with a slash."""
        try:
            if message.startswith("/"):
                self._obey(*message.partition(" ")[::2])
            elif message.strip():
                self.answer(message.strip())
        except CommandError as err:
            self._screen.note(f"lmlite: {err}")
        except KeyboardInterrupt:
            self._screen.note("stopped")

    def _obey(self, command: str, argument: str) -> None:
        conversation, argument = self._conversation, argument.strip()
        match command:
            case "/clear":
                conversation.clear()
            case "/system":
                conversation.system_prompt = argument
            case "/image":
                conversation.attach(os.path.expanduser(argument))
            case "/model" if argument:
                conversation.fields["model"] = argument
            case "/model":
                self._screen.note("\n".join(_names(conversation.client)))
            case "/stats":
                self._has_stats = not self._has_stats
                last = conversation.answer.statistics() if self._has_stats else "no more figures"
                self._screen.note(last)
            case _:
                unknown = "" if command == "/help" else f"there is no {command}\n"
                self._screen.note(unknown + HELP)


def _question(given: argparse.Namespace) -> str | None:
    """The text of -p and of piped input; None: there is a person. Raises CommandError."""
    is_piped = not sys.stdin.isatty()
    if given.prompt is None and not is_piped and sys.stdout.isatty():
        return None
    try:
        piped = sys.stdin.buffer.read().decode() if is_piped or given.prompt is None else ""
    except UnicodeDecodeError:
        raise CommandError("standard input is not text in UTF-8", 2) from None
    question = f"{given.prompt or ''}\n{piped}".strip()
    if not question:
        raise CommandError("there is no question: give one with -p, or on standard input", 2)
    return question


def _conversation(given: argparse.Namespace, client: Client) -> Conversation:
    """A conversation as the flags want it. Raises CommandError."""
    fields = dict(REASONING.get(given.reasoning, {"reasoning_effort": given.reasoning}))
    for name in ("max_tokens", "temperature", "ttl"):
        if getattr(given, name) is not None:
            fields[name] = getattr(given, name)
    if given.model and not _is_file(given.model):
        fields["model"] = given.model
    conversation = Conversation(client, fields, given.system_prompt or "")
    for path in given.image or ():
        conversation.attach(path)
    return conversation


@contextlib.contextmanager
def _server(given: argparse.Namespace, screen: Screen) -> Iterator[Client]:
    """The server at --url, or one of this program's own. Raises CommandError."""
    client = Client.of(given)
    if not _is_file(given.model) and _is_running(client):
        yield client
        return
    file = given.model if _is_file(given.model) else None
    with open(os.devnull, "w") as log:
        try:
            with screen.waiting(f"loading {file}" if file else "starting a server"):
                server = start(file, log=log, log_level="error", ping_seconds=PING_S)
        except CannotStart as err:
            raise CommandError(str(err), 1) from None
        with server:
            yield Client(server.url)


def _is_file(model: str | None) -> bool:
    return model is not None and model.endswith(".gguf")


def _is_running(client: Client) -> bool:
    """Whether there is a server; one on a different machine has to be. Raises CommandError."""
    try:
        _names(client)
    except NoServerError:
        if not client.is_local:
            raise
        return False
    return True


def _names(client: Client) -> list[str]:
    """The models of the server. Raises CommandError."""
    try:
        return [printable(model["id"]) for model in client.ask("GET", "/v1/models")["data"]]
    except (LookupError, TypeError, AttributeError):
        raise CommandError(f"{client.url} has no list of models", 1) from None
