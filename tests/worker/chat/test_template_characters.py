"""Chat templates count characters of a text, not its bytes, as Python's own Jinja does."""

import pytest

from lmlite.worker.chat.bridge_request import request_of
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from tests.support.jinja_reference import environment
from tests.support.template_tree import NAMES, source_of
from tests.worker.chat.test_templates import (
    Conversation,
    assistant,
    expected,
    options_of,
    tool,
    user,
)

# Characters of two to four bytes, some of which share bytes.
WIDE = "éè—東京🌍"
N_MAX = 400

# Wherever within their first 400 bytes texts are cut, one of these loses half a character.
TEXTS = ["a" * n + WIDE for n in range(0, N_MAX + 1, 5)]
TOOLS = [
    tool(f"tool{n}", text, given={"type": "string", "description": text})
    for n, text in enumerate(TEXTS)
]


def rendered(model: Model, source: str | None, conversation: Conversation) -> str:
    template = ChatTemplate(model, source)
    try:
        reply = template._own.reply(request_of(conversation.messages, options_of(conversation)))
        return str(reply["prompt"])
    finally:
        template.close()


@pytest.mark.parametrize(
    "expression",
    [
        "text[:n]",
        "text[n:]",
        "text[n:n + 3]",
        "text[-1 - n:]",
        "text[:n:2]",
        "text[n::-1]",
        "text[::-1]",
        "text[n]",
        "text[-1 - n]",
        "text[:n] | length",
        "(text[:n] ~ 'é' * n) | length",
        "text[:n].strip('éè')",
        "text[n:].lstrip('é—è')",
        "text[:n].rstrip('京—東')",
        "'è東'.strip('é京')",
        "text[:n].replace('', '.')",
    ],
)
def test_an_expression_gives_what_it_gives_in_python(default_model: Model, expression: str) -> None:
    text = WIDE + WIDE[::-1] + "a" * 20 + WIDE * 50
    each = f"{{% for n in range({N_MAX + 1}) %}}{{{{ {expression} }}}};{{% endfor %}}"
    source = f"{{% set text = '{text}' %}}{each}"
    wanted = environment().from_string(source).render()
    assert rendered(default_model, source, Conversation([user("Hi")])) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_template_cuts_no_character(special_model: Model, name: str) -> None:
    said = [(assistant if n % 2 else user)(text) for n, text in enumerate(TEXTS)]
    conversation = Conversation(said, TOOLS)
    text = rendered(special_model, source_of(name), conversation)
    # Twice, as midnight may have passed.
    assert text in (expected(name, conversation), expected(name, conversation))


def test_the_embedded_template_gives_each_description_its_first_120_characters(
    default_model: Model,
) -> None:
    prompt = rendered(default_model, None, Conversation([user("Hi")], TOOLS))
    lines = prompt.partition("<tools>\n")[2].partition("</tools>")[0].splitlines()
    assert lines == [f"tool{n}(given: string) {text[:120]}" for n, text in enumerate(TEXTS)]
