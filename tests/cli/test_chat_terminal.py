"""`lmlite chat` as a person uses it, in a terminal."""

import base64
import threading
from pathlib import Path

import pytest

from lmlite.cli.terminal import harmless
from tests.support.image_files import RED, png
from tests.support.scripted_server import Reply, ScriptedServer, end, piece, said
from tests.support.terminal import Terminal

PROMPT = "> "


class Talk:
    """A person at `lmlite chat`, and a server with these replies."""

    def __init__(
        self,
        *replies: Reply,
        flags: tuple[str, ...] = (),
        before: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.server = ScriptedServer(*replies)
        flags = ("chat", "--url", self.server.url, *flags)
        self.terminal = Terminal(*flags, before=before, **environment or {})

    def __enter__(self) -> "Talk":
        self.server.__enter__()
        self.terminal.expect("/help lists the commands")
        self.terminal.expect(PROMPT)
        return self

    def __exit__(self, *_: object) -> None:
        self.terminal.__exit__()
        self.server.__exit__()

    def say(self, line: str) -> str:
        """Types a line; returns what is shown until the next prompt."""
        self.terminal.type(line + "\r")
        self.terminal.expect("\n")  # the end of what was typed
        shown = self.terminal.expect(PROMPT)
        return shown.replace("\x1b[?2004l\r", "").replace("\x1b[?2004h", "").replace("\r\n", "\n")

    def leave(self) -> int:
        self.terminal.type("\x04")
        return self.terminal.end()

    @property
    def messages(self) -> list[dict[str, str]]:
        """Those of the last request."""
        messages: list[dict[str, str]] = self.server.chats[-1]["messages"]
        return messages


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# ---- the conversation ----------------------------------------------------------------------


def test_each_question_is_sent_with_what_was_said_before() -> None:
    with Talk(said("Hello."), said("Alice.")) as talk:
        assert talk.say("My name is Alice.") == "Hello.\n"
        assert talk.say("My name?") == "Alice.\n"
        assert talk.messages == [user("My name is Alice."), assistant("Hello."), user("My name?")]
        assert talk.leave() == 0


def test_clear_forgets_what_was_said_and_keeps_the_system_prompt() -> None:
    with Talk(said("A"), said("B"), flags=("-s", "Be short.")) as talk:
        talk.say("One")
        talk.say("/clear")
        talk.say("Two")
        assert talk.messages == [{"role": "system", "content": "Be short."}, user("Two")]


def test_the_system_prompt_can_be_changed_and_removed() -> None:
    with Talk(said("A"), said("B")) as talk:
        talk.say("/system Answer in rhymes.")
        talk.say("One")
        assert talk.messages[0] == {"role": "system", "content": "Answer in rhymes."}
        talk.say("/system")
        talk.say("Two")
        assert talk.messages == [user("One"), assistant("A"), user("Two")]


def test_an_image_goes_with_the_next_message_only(tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(png(2, 2, RED))
    with Talk(said("Red."), said("Yes.")) as talk:
        assert talk.say(f"/image {path}") == ""
        talk.say("Colour?")
        url = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        seen = [
            {"type": "text", "text": "Colour?"},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        assert talk.messages == [{"role": "user", "content": seen}]
        talk.say("Sure?")
        assert talk.messages[1:] == [assistant("Red."), user("Sure?")]
        why = f"lmlite: the image {tmp_path} cannot be read: Is a directory\n"
        assert plain(talk.say(f"/image {tmp_path}")) == why


def test_the_model_can_be_switched_and_models_are_listed() -> None:
    with Talk(said("A"), flags=("one",)) as talk:
        assert plain(talk.say("/model")) == "one\ntwo\n"
        talk.say("/model two")
        talk.say("Hi")
        assert talk.server.chats[0]["model"] == "two"


def test_stats_are_those_of_the_last_answer_and_then_of_each() -> None:
    with Talk(said("A"), said("B")) as talk:
        assert plain(talk.say("/stats")) == "there is no answer yet\n"
        figures = plain(talk.say("Hi"))
        assert figures.startswith("A\n7 prompt tokens (3 cached), 5 tokens, first after ")
        assert figures.endswith(" s, stop reason: stop\n")
        assert plain(talk.say("/stats")) == "no more figures\n"
        assert talk.say("Hi") == "B\n"


def test_help_lists_the_commands_and_so_does_one_that_is_unknown() -> None:
    with Talk(said("A")) as talk:
        shown = plain(talk.say("/help"))
        for name in ("clear", "system", "image", "model", "stats", "exit"):
            assert f"/{name} " in shown
        assert plain(talk.say("/nonsense")) == "there is no /nonsense\n" + shown
        talk.say(" /etc is a folder")
        assert talk.messages == [user("/etc is a folder")]


def test_exit_ends_it_and_an_empty_line_asks_nothing() -> None:
    with Talk() as talk:
        assert talk.say("  ") == ""
        talk.terminal.type("/exit\r")
        assert talk.terminal.end() == 0
        assert talk.server.chats == []


def test_a_question_without_an_answer_is_forgotten() -> None:
    with Talk([b'data: {"error": {"message": "no room"}}\n\n'], said("A")) as talk:
        assert plain(talk.say("One")) == "lmlite: no room\n"
        assert talk.say("Two") == "A\n"
        assert talk.messages == [user("Two")]


# ---- the keyboard --------------------------------------------------------------------------


def test_a_message_may_have_several_lines() -> None:
    with Talk(said("A"), said("B")) as talk:
        talk.terminal.type("one \\\r")
        talk.terminal.expect("... ")
        talk.say("two")
        assert talk.messages == [user("one \ntwo")]
        talk.say("\x1b[200~pasted\rlines\x1b[201~")
        assert talk.messages[-1] == user("pasted\nlines")


def test_it_works_without_readline() -> None:
    missing = "sys.modules['readline'] = None"
    with Talk(said("A"), before=missing) as talk:
        assert talk.say("Hi") == "A\n"
        talk.terminal.interrupt()
        talk.terminal.expect("Ctrl-C again or Ctrl-D ends the conversation")
        talk.terminal.interrupt()
        assert talk.terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    with Talk() as talk:
        talk.server.add([piece(content="One, two"), talk.server.wait_until_left])
        talk.server.add(said("Three."))
        talk.terminal.type("Count\r")
        talk.terminal.expect("One, two")
        talk.terminal.interrupt()
        talk.terminal.expect("stopped")
        assert talk.server.left.wait(20)
        talk.terminal.expect(PROMPT)
        assert talk.say("Go on") == "Three.\n"
        assert talk.messages == [user("Count"), assistant("One, two"), user("Go on")]
        assert talk.leave() == 0


def test_ctrl_c_before_an_answer_begins_leaves_no_trace() -> None:
    with Talk() as talk:
        asked = threading.Event()
        talk.server.add([asked.set, talk.server.wait_until_left])
        talk.server.add(said("A"))
        talk.terminal.type("One\r")
        assert asked.wait(20)
        talk.terminal.interrupt()
        talk.terminal.expect("stopped")
        assert talk.server.left.wait(20)
        talk.terminal.expect(PROMPT)
        assert talk.say("Two") == "A\n"
        assert talk.messages == [user("Two")]


def test_ctrl_c_at_an_empty_prompt_gives_a_hint_and_a_second_one_ends_it() -> None:
    hint = "Ctrl-C again or Ctrl-D ends the conversation"
    with Talk(said("A")) as talk:
        talk.terminal.interrupt()
        talk.terminal.expect(hint)
        talk.terminal.expect(PROMPT)
        assert talk.say("Hi") == "A\n"  # after which the next one is a first one again
        talk.terminal.interrupt()
        talk.terminal.expect(hint)
        talk.terminal.expect(PROMPT)
        talk.terminal.type("typed")
        talk.terminal.expect("typed")
        talk.terminal.interrupt()  # takes the text away, no more
        talk.terminal.expect(hint)
        talk.terminal.expect(PROMPT)
        talk.terminal.interrupt()
        talk.terminal.expect(hint)
        talk.terminal.expect(PROMPT)
        talk.terminal.interrupt()
        assert talk.terminal.end() == 0


# ---- what is shown -------------------------------------------------------------------------


def plain(shown: str) -> str:
    """Without the marks of dim text."""
    return shown.replace("\x1b[2m", "").replace("\x1b[0m", "")


def test_thoughts_are_dim() -> None:
    thoughts = [piece(reasoning_content="H"), piece(reasoning_content="m."), piece(content="Yes.")]
    with Talk([*thoughts, end()]) as talk:
        assert talk.say("Hi") == "\x1b[2mHm.\n\n\x1b[0mYes.\n"


def test_an_answer_of_thoughts_only_leaves_no_dim_text_behind() -> None:
    with Talk([piece(reasoning_content="Hm."), end("length")]) as talk:
        assert talk.say("Hi").startswith("\x1b[2mHm.\x1b[0m\n\x1b[2mlmlite: the answer is cut")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_there_is_no_style_where_none_is_wanted(environment: dict[str, str]) -> None:
    thoughts = [piece(reasoning_content="Hm."), piece(content="Yes."), end("length")]
    with Talk(thoughts, environment=environment) as talk:
        assert talk.say("Hi").startswith("Hm.\n\nYes.\nlmlite: the answer is cut")


def test_a_model_cannot_control_the_terminal() -> None:
    hostile = [
        piece(reasoning_content="\x1b]0;title\x07"),
        piece(content="\x1b"),
        piece(content="[2J\x9b2J\rok\té"),
        end(),
    ]
    with Talk(hostile) as talk:
        assert plain(talk.say("Hi")) == "\\x1b]0;title\\x07\n\n\\x1b[2J\\x9b2J\\rok\té\n"


@pytest.mark.parametrize("text", ["👩‍💻 e\u0301", "日本\u3000語", "a\u00a0b\n\tc", "שלום"])
def test_what_people_write_is_harmless(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\u202e", "\\u202e"), ("\ud800", "\\ud800"), ("\x7f\0", "\\x7f\\x00")],
)
def test_what_turns_or_ends_text_is_shown_escaped(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_why_one_waits_is_shown_until_the_answer_comes() -> None:
    waiting = [b": queued 2\n\n", b": queued 1\x1b\n\n"]
    with Talk([*waiting, piece(content="A"), *waiting, end()]) as talk:
        assert talk.say("Hi") == "\r\x1b[Kqueued 2\r\x1b[Kqueued 1\\x1b\r\x1b[KA\n"


def test_the_start_of_a_server_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "none.gguf"
    with Terminal("chat", str(file)) as terminal:
        assert terminal.end() == 1
        assert terminal.shown.startswith(f"\r\x1b[Kloading {file} 0 s\r\x1b[K")
        why = "lmlite: none.gguf cannot be loaded: it does not exist\r\n"
        assert terminal.shown.endswith(f"\r\x1b[K{why}")


def test_a_script_at_a_terminal_sees_its_answer_there() -> None:
    server = ScriptedServer(said("A\n"))
    with server, Terminal("chat", "--url", server.url, "-p", "Hi") as terminal:
        assert terminal.end() == 0
        assert terminal.shown == "A\r\n"
