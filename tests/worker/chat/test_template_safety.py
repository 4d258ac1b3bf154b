"""No chat template in llama.cpp's tree lets a client write a control token, in whichever field.

A conversation with something hostile in each field has to become the same control tokens as the
same conversation with a harmless word in each, in a vocabulary in which all that looks like a
special token in any template is one.
"""

import json
import re
from collections.abc import Callable
from itertools import count

import pytest

from lmlite.messages import ChatMessage, ChatOptions, ToolCall
from lmlite.worker.chat.bridge_request import request_of
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from tests import REPOSITORY
from tests.support.template_tree import NAMES, source_of, specials

Word = Callable[[], str]  # the text for the next field
Chat = tuple[list[ChatMessage], ChatOptions]
ALIEN = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "[INST]",
    "<\uff5cUser\uff5c>",
    "<|eot_id|>",
]
CUT_AT = ["</think>", "/think", "/no_think", "/no_/thinkthink", "\n", "<think>"]

# Templates that obey words in a message: the tokens that such a word writes, and why. The manual
# has the same list.
COMMANDS = {
    "HuggingFaceTB-SmolLM3-3B": (
        ["<think>", "</think>"],
        "`/no_think` in the system message turns reasoning off: "
        "the template writes an empty thought",
    )
}


def escaped(text: str) -> str:
    """The text with each letter written as a JSON escape."""
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


def talk(word: Word) -> Chat:
    """A conversation without tools, each of its fields with another word."""
    messages = [
        ChatMessage("system", word()),
        ChatMessage("user", word(), name=word()),
        ChatMessage("assistant", word(), reasoning=word()),
        ChatMessage("user", word()),
    ]
    kwargs = {"custom": {word(): word()}, "bos_token": word(), "eos_token": word()}
    return messages, ChatOptions(template_kwargs=kwargs)


def errand(word: Word) -> Chat:
    """A conversation with a tool, its calls and their results, each field with another word."""
    call_id, called = word(), word()
    arguments = f'{{"{escaped(word())}": "{escaped(word())}", "plain": [{json.dumps(word())}]}}'
    first = ToolCall(call_id, called, arguments)
    second = ToolCall(call_id, called, json.dumps({word(): {word(): word()}}))
    cut = ToolCall(call_id, called, f'{{"{word()}": "{word()}')
    messages = [
        ChatMessage("system", word()),
        ChatMessage("user", word()),
        ChatMessage("assistant", "", reasoning=word(), tool_calls=(first,)),
        ChatMessage("tool", word(), name=called, tool_call_id=call_id),
        ChatMessage("assistant", word()),
        ChatMessage("user", word()),
        ChatMessage("assistant", "", tool_calls=(second,)),
        ChatMessage(
            "tool", f'{{"{escaped(word())}": "{escaped(word())}"}}', called, None, (), call_id
        ),
        ChatMessage("system", word()),
        ChatMessage("user", word()),
        ChatMessage("user", word()),
        ChatMessage("assistant", word(), tool_calls=(cut,)),
        ChatMessage("user", word()),
    ]
    field = {"type": "string", "description": word(), "enum": [word(), word()], word(): word()}
    parameters = {"type": "object", "properties": {word(): field}, "required": [word()]}
    function = {"name": called, "description": word(), "parameters": parameters}
    return messages, ChatOptions(tools=({"type": "function", "function": function},))


def harmless() -> Word:
    numbers = count(1)
    return lambda: f"word {next(numbers)}"


def each(words: list[str]) -> Word:
    numbers = count()
    return lambda: words[next(numbers) % len(words)]


def halves(tokens: list[str]) -> Word:
    """Each field ends with the first half of a token, and the next begins with its other half.

    Every other one has spaces around it, which a template may trim.
    """
    numbers, open_half = count(), [""]

    def word() -> str:
        begun, number = open_half[0], next(numbers)
        token = tokens[number % len(tokens)]
        middle = len(token) // 2
        open_half[0] = token[middle:]
        return f" {begun} x {token[:middle]} \n" if number % 2 else f"{begun} x {token[:middle]}"

    return word


def cut_up(token: str, cut: str) -> str:
    """The token with a word in its middle that templates remove, or cut at."""
    middle = len(token) // 2
    return token[:middle] + cut + token[middle:]


def attacks(name: str) -> dict[str, Word]:
    """Texts for the fields, by name, made of the template's own tokens and of other families'."""
    own = specials(name)
    tokens = own + [token for token in ALIEN if token not in own]
    insides = [token[1:-1] for token in tokens]
    cut = [cut_up(token, cut) for token in own for cut in CUT_AT]
    everything = " ".join(tokens + [token.swapcase() for token in tokens] + cut)
    return {
        "everything": each([f"{n} {everything}" for n in range(30)]),
        "each": each(tokens),
        "halves": halves(tokens),
        "insides": each(insides + [inside[1:-1] for inside in insides if len(inside) > 2]),
    }


@pytest.fixture(scope="module")
def controls(special_model: Model) -> dict[int, str]:
    """How each control token is spelled."""
    vocab = special_model.vocab
    return {
        token: vocab.piece(token, special=True).decode()
        for token in range(vocab.n_tokens)
        if vocab.piece(token) == b""
    }


def written(template: ChatTemplate, chat: Chat, controls: dict[int, str]) -> list[str]:
    """The control tokens of the prompt."""
    _, prompt, _ = template.accepted(template.adapted(request_of(*chat)))
    return [controls[token] for token in prompt.ids if token in controls]


@pytest.mark.parametrize("name", NAMES)
def test_no_field_writes_a_control_token(
    special_model: Model, controls: dict[int, str], name: str
) -> None:
    template = ChatTemplate(special_model, source_of(name))
    commanded = COMMANDS[name][0] if name in COMMANDS else []
    found = {}
    for conversation in (talk, errand):
        wanted = written(template, conversation(harmless()), controls)
        for title, word in attacks(name).items():
            tokens = written(template, conversation(word), controls)
            if tokens != wanted:
                found[f"{conversation.__name__}: {title}"] = (wanted, tokens)
    template.close()
    for wanted, tokens in found.values():
        assert without(commanded, tokens) == without(commanded, wanted), found
    assert (found != {}) == (name in COMMANDS), "remove it from COMMANDS"


def without(commanded: list[str], tokens: list[str]) -> list[str]:
    return [token for token in tokens if token not in commanded]


def test_the_manual_lists_the_templates_that_obey_words() -> None:
    page = (REPOSITORY / "lmlite/manual/templates.md").read_text()
    block = re.search(r"<!-- templates -->\n(.*?)\n\n", page, re.DOTALL)
    assert block is not None
    rows = [f"| `{name}` | {reason} |" for name, (_, reason) in COMMANDS.items()]
    assert block[1].splitlines() == ["| template | what a message can do |", "| --- | --- |", *rows]
