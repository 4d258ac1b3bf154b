"""llm, a program for the terminal: answers, whole and streamed, a schema, a function of Python.

In an environment of its own: `python -m tests.clients.llm_program URL MODEL`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clients.asked import ANNA, INTRODUCE, OSLO, RESULT, TOLD, Person


def main(url: str, model: str) -> None:
    """Names the server in llm's settings, and asks; prints an answer."""
    with tempfile.TemporaryDirectory() as folder:
        entry = {"model_id": model, "model_name": model, "api_base": f"{url}/v1",
                 "supports_tools": True, "supports_schema": True}  # fmt: skip
        (Path(folder) / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
        functions = Path(folder) / "functions.py"
        functions.write_text(f"def get_weather(city: str) -> str:\n    return {RESULT!r}\n")

        def llm(*arguments: str) -> str:
            command = [str(Path(sys.executable).with_name("llm")), "-m", model,
                       "-o", "temperature", "0", *arguments]  # fmt: skip
            environment = {**os.environ, "LLM_USER_PATH": folder}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True,
                                  stdin=subprocess.DEVNULL, text=True)  # fmt: skip
            return done.stdout.strip()

        answer = llm(INTRODUCE)
        assert answer == llm(INTRODUCE, "--no-stream") != ""
        form = llm(ANNA, "--schema", json.dumps(Person.model_json_schema()))
        assert json.loads(form) == {"name": "Anna", "age": 12}
        assert llm(OSLO, "--functions", str(functions)) == TOLD
        print(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
