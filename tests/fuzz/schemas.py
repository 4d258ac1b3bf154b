"""Asks for answers in thousands of random JSON schemas and grammars.

    python -m tests.fuzz.schemas --count 5000 --seed 1       the run; its last line has the totals
    python -m tests.fuzz.schemas --seed 1 --only 42          one of them, to look at
    python -m tests.fuzz.schemas values --count 2000         whether values fit, and no others

Half of them are schemas, of answers or tools, and half are grammars. They are random, or one of the
tests' with random changes. A real server has to compile each and to choose a first token by it
within a second, or to refuse it; it may refuse tools only for their size. The exit code is 1 if one
took longer, or if a worker died. With `values`, grammars of such schemas are compared with values
instead: a widened one must take all values of the schema, and a strict one no others.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from lmlite.library import library_folder
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama import capi
from lmlite.worker.llama.model import Model
from tests.conftest import DEFAULT_MODEL
from tests.fuzz.http import NAMES, changed
from tests.server.forms.test_gbnf import BAD, YES_NO
from tests.support.schema_cases import REFUSED, VALID
from tests.support.schema_values import JsonGrammars, wrongly_refused, wrongly_taken
from tests.support.server_process import Answer, RunningServer

CHAT = "/v1/chat/completions"
COMPILED_S = 1.0
SLACK = 3  # a machine that others use too is allowed so many times as long

SCHEMAS = [
    json.dumps(schema) for schema in (*VALID.values(), *(one for one, _ in REFUSED.values()))
]
GRAMMARS = [YES_NO, *(text for text in BAD.values() if len(text) < 2000)]
COUNTS = (0, 1, 2, 3, 7, 63, 64, 65, 127, 128, 129, 999, 1000, 1001, 10**9, -1)
PATTERNS = ("^a$", "^(a|b)*c{2,5}$", "^(a+)+$", "^[^x]{0,200}$", "a", "^(?=a)$", "^(x{1,9}){1,9}$",
            "^\\d{3}-\\w+$", "(", "^" + "(a?)" * 40 + "$")  # fmt: skip
PIECES = ('"a"', '"\\n"', "[a-z]", "[^\\x00-\\x1F]", ".", "root", "a", "b", "c", "d", '""', '"é"',
          "<0>", "[", '"', "nothing", "# x\n")  # fmt: skip

# ---- random forms --------------------------------------------------------------------------


def random_schema(rng: random.Random, depth: int = 0) -> Any:
    """A schema of any kind, with others inside."""
    if depth > rng.randrange(2, 9) or rng.random() < 0.4:
        return _leaf(rng)

    def inner() -> Any:
        return random_schema(rng, depth + 1)

    def several(most: int) -> list[Any]:
        return [inner() for _ in range(rng.randrange(1, most))]

    match rng.randrange(6):
        case 0 | 1:
            return {"type": "array", "items": inner(), "minItems": rng.choice(COUNTS),
                    "maxItems": rng.choice(COUNTS)}  # fmt: skip
        case 2:
            return {"type": "array", "prefixItems": several(6)}
        case 3:
            return {rng.choice(("anyOf", "oneOf", "allOf")): several(8)}
        case 4:
            return {"$defs": {"a": inner(), "b": inner()}, **inner()}
    names = [rng.choice(NAMES) for _ in range(rng.choice((1, 3, 3, 12, 100 if depth < 2 else 3)))]
    properties = {name: inner() if i < 4 else {"type": "null"} for i, name in enumerate(names)}
    required = names[: rng.randrange(len(names) + 1)]
    return {"type": "object", "properties": properties, "required": required}


def _leaf(rng: random.Random) -> Any:
    kinds = ("string", "integer", "number", "boolean", "null", "any", ["string", "null"])
    values: tuple[Any, ...] = (
        "a",
        "b" * rng.choice(COUNTS[:8]),
        1,
        1.5,
        None,
        [],
        rng.randrange(1000),
    )
    refs = ("#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#/nowhere", "https://a.example")
    few, many = rng.choice(COUNTS), rng.choice(COUNTS)
    return rng.choice((
        {"type": rng.choice(kinds)},
        {"enum": rng.choices(values, k=rng.choice((1, 3, 30, 300)))},
        {"type": "string", "pattern": rng.choice(PATTERNS)},
        {"type": "string", "minLength": few, "maxLength": many},
        {"type": "integer", "minimum": few, "maximum": many},
        {"$ref": rng.choice(refs)},
    ))  # fmt: skip


def random_grammar(rng: random.Random) -> str:
    """Rules that use each other, and rules that are missing."""

    def expression(depth: int) -> str:
        parts = []
        for _ in range(rng.randrange(1, 4)):
            part = rng.choice(PIECES)
            if depth < rng.choice((1, 3, 3, 80)) and rng.random() < 0.5:
                part = f"({expression(depth + 1)})"
            parts.append(part + rng.choice(("", "", "*", "+", "?", _count(rng))))
        return rng.choice((" ", " ", " | ")).join(parts)

    return "\n".join(f"{name} ::= {expression(0)}" for name in ("root", "a", "b", "c"))


def _count(rng: random.Random) -> str:
    return f"{{{rng.choice(COUNTS)}{rng.choice(('', ',', f',{rng.choice(COUNTS)}'))}}}"


def changed_grammar(rng: random.Random, text: str) -> str:
    """The grammar with words left out, repeated, replaced, counted or wrapped."""
    words = re.findall(r'"[^"]*"|\S+|\n', text) or [""]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(words))
        match rng.randrange(5):
            case 0:
                words[at] = rng.choice(PIECES)
            case 1:
                words[at:at] = [words[rng.randrange(len(words))]] * rng.choice((1, 2, 300))
            case 2:
                words[at] += _count(rng)
            case 3:
                n_open = rng.choice((1, 63, 64, 65, 3000))
                words[at] = "(" * n_open + words[at] + ")" * n_open
            case _:
                words[at] = ""
    return " ".join(words)


def mutant(seed: int, number: int) -> dict[str, Any]:
    """The form that the request of this number asks for, always the same."""
    rng = random.Random(f"{seed} {number}")
    if number % 2:
        text = random_grammar(rng)
        text = changed_grammar(rng, rng.choice(GRAMMARS)) if rng.random() < 0.5 else text
        return {"grammar": text}
    schema = random_schema(rng)
    if rng.random() < 0.5:
        schema = changed(rng, json.loads(rng.choice(SCHEMAS)))
    if number % 4 == 2:
        function = {"name": "f", "parameters": schema if type(schema) is dict else {}}
        return {"tools": [{"type": "function", "function": function}]}
    form = {"name": "form", "schema": schema, "strict": rng.random() < 0.5}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


# ---- the run -------------------------------------------------------------------------------


def ask(server: RunningServer, number: int, asked: dict[str, Any]) -> Answer:
    """Asks for one token in that form."""
    messages = [{"role": "user", "content": f"Answer {number}"}]  # unlike any other
    body = {"messages": messages, "max_tokens": 1, **asked}
    return server.request("POST", CHAT, json.dumps(body).encode("utf-8", "surrogatepass"))


def is_refused(asked: dict[str, Any], answer: Answer) -> bool:
    """Whether this refusal is allowed: of tools, only for their size or for a number in Python."""
    error = answer.error
    is_large = error["code"] == "context_length_exceeded" or "values" in error["message"]
    has_infinity = error["message"].endswith("is not a JSON number")
    return "tools" not in asked or is_large or has_infinity


def run(seed: int, numbers: Iterable[int]) -> tuple[Counter[str], float]:
    """Asks for them one by one and prints each fault. Returns totals and the longest time."""
    totals: Counter[str] = Counter()
    longest_s = 0.0
    with RunningServer("--allow-grammar") as server:
        worker_pid = server.worker_pid()
        for number in numbers:
            asked = mutant(seed, number)
            (kind,) = asked
            began_s = time.monotonic()
            answer = ask(server, number, asked)
            took_s = time.monotonic() - began_s
            longest_s = max(longest_s, took_s)
            is_right = answer.status == 200 or (answer.status == 400 and is_refused(asked, answer))
            fault = "" if is_right else f"status {answer.status}"
            if took_s > COMPILED_S * SLACK:
                fault += f" after {took_s:.1f} s"
            totals[f"{kind} {answer.status}" if not fault else "faults"] += 1
            if fault:
                print(f"seed {seed} number {number}: {fault}: {str(asked)[:200]}", flush=True)
        if server.get("/metrics").body.count(b"\nlmlite_worker_starts_total 1\n") != 1:
            totals["faults"] += 1
        assert server.worker_pid() == worker_pid or totals["faults"]
    return totals, longest_s


def run_values(seeds: range) -> tuple[Counter[str], int]:
    """Compares grammars with values and prints each fault. Returns totals and the faults."""
    totals: Counter[str] = Counter()
    lib = capi.load(str(library_folder(None)))
    model = Model(lib, str(DEFAULT_MODEL))
    template = ChatTemplate(model)
    grammars = JsonGrammars(model, template)
    for seed in seeds:
        found = {
            "values of answers": wrongly_refused(grammars, seed, False),
            "values of tools": wrongly_refused(grammars, seed, True),
            "values that strict schemas take": wrongly_taken(grammars, seed),
        }
        for kind, (n, fault) in found.items():
            totals[kind] += n
            totals["faults"] += bool(fault)
            if fault:
                print(f"{kind}: {fault}", flush=True)
    template.close()
    model.close()
    return totals, totals["faults"]


def main() -> int:
    """Runs the command; 1 if a form was too much."""
    parser = argparse.ArgumentParser(description="Random schemas and grammars.")
    parser.add_argument("what", nargs="?", choices=("requests", "values"), default="requests")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of a single form, which is printed")
    options = parser.parse_args()
    numbers = range(options.count)
    if options.what == "values":
        begin = options.seed * 1_000_000
        totals, n_faults = run_values(range(begin, begin + options.count))
        told = ", ".join(f"{n:,} {what}" for what, n in totals.items())
        print(f"seed {options.seed}: {options.count:,} schemas: {told}")
        return int(n_faults > 0)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
        print(json.dumps(mutant(options.seed, options.only)))
    totals, longest_s = run(options.seed, numbers)
    told = ", ".join(f"{n:,} {what}" for what, n in sorted(totals.items()))
    print(f"seed {options.seed}: {len(numbers):,} forms, {longest_s:.2f} s at most: {told}")
    return int(totals["faults"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
