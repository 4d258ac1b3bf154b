"""The tests of lmlite; `make test` runs them."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
# SmolLM2-135M-Instruct, where `make real-model` puts it.
REAL_MODEL = REPOSITORY / ".local" / "smollm2-135m-instruct-q4_1.gguf"
