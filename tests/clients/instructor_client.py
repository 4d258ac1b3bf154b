"""instructor: a model class in, an object of it out, by a tool or by a schema, whole and streamed.

In an environment of its own, since it wants an older OpenAI client than the one that is shown
elsewhere: `python -m tests.clients.instructor_client URL MODEL`.
"""

import sys
from typing import Any

import instructor
from openai import OpenAI

from tests.clients.asked import ANNA, Owner, Person

PERSON = {"name": "Anna", "age": 12}
ASKED = {
    instructor.Mode.TOOLS: "Call Person with name Anna and age 12.",
    instructor.Mode.JSON_SCHEMA: ANNA,
}


def main(url: str, model: str) -> None:
    """Asks in both ways; prints an answer."""
    openai = OpenAI(base_url=f"{url}/v1", api_key="lm-studio")
    for mode, question in ASKED.items():
        client = instructor.from_openai(openai, mode=mode)
        ask: dict[str, Any] = {"model": model, "max_retries": 0,
                               "messages": [{"role": "user", "content": question}]}  # fmt: skip
        whole = client.create(response_model=Person, temperature=0, **ask)
        *_, last = client.create_partial(response_model=Person, temperature=0, **ask)
        assert whole.model_dump() == last.model_dump() == PERSON
        # The model has not been taught this form: what is in it may be anything.
        owner = client.create(response_model=Owner, seed=1, max_tokens=1000, **ask)
        assert isinstance(owner, Owner)
    print(PERSON)


if __name__ == "__main__":
    main(*sys.argv[1:])
