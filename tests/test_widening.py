"""A widened schema refuses no value that the client's takes; a strict one takes no other.

Shown with llama.cpp's own grammars, for schemas and values by chance.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.server.schemas import ToolSchemas, honoured_schema, widened_schema
from lmlite.worker.chat_template import ChatTemplate
from lmlite.worker.llama import Model
from tests.json_schema import faults
from tests.schema_values import NOTHING, JsonGrammar, document_by_chance, value_by_chance

N_SCHEMAS, N_VALUES = 150, 4


@pytest.fixture(scope="module")
def template(default_model: Model) -> Iterator[ChatTemplate]:
    made = ChatTemplate(default_model)
    yield made
    made.close()


@pytest.mark.parametrize("is_tool", [False, True], ids=["of an answer", "of a tool"])
def test_a_widened_schema_refuses_no_value_of_the_original(
    default_model: Model, template: ChatTemplate, is_tool: bool
) -> None:
    n_values = 0
    for seed in range(N_SCHEMAS):
        rng = random.Random(seed)
        schema = document_by_chance(rng)
        values = [value_by_chance(rng, schema, schema) for _ in range(N_VALUES)]
        fitting = [value for value in values if value is not NOTHING]
        widened = ToolSchemas().widened(schema, "f") if is_tool else widened_schema(schema)
        grammar = JsonGrammar(default_model, template, json.dumps(widened.schema))
        refused = [value for value in fitting if not grammar.takes(value)]
        assert refused == [], json.dumps([seed, schema, widened.schema])
        n_values += len(fitting)
    assert n_values > N_SCHEMAS  # else the values are too hard to find


def test_a_strict_schema_takes_no_value_that_the_original_refuses(
    default_model: Model, template: ChatTemplate
) -> None:
    n_taken = 0
    for seed in range(2 * N_SCHEMAS):  # many of which are refused
        rng = random.Random(seed)
        schema, other = document_by_chance(rng), document_by_chance(rng)
        try:
            honoured = honoured_schema(schema, "schema")
        except BadRequest:
            continue
        grammar = JsonGrammar(default_model, template, honoured)
        values: list[Any] = [value_by_chance(rng, schema, schema) for _ in range(N_VALUES)]
        values += [value_by_chance(rng, other, other), *map(json.loads, grammar.samples(rng, 3))]
        taken = [value for value in values if value is not NOTHING and grammar.takes(value)]
        assert [value for value in taken if faults(value, schema, schema)] == [], json.dumps(
            [seed, schema]
        )
        n_taken += len(taken)
    assert n_taken > N_SCHEMAS / 2
