"""lmlite serves GGUF models behind the OpenAI API, on Python's standard library and llama.cpp."""

__version__ = "0.1.0"
