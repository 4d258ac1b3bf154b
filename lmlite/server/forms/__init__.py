"""JSON schemas and grammars of clients, checked and rewritten for llama.cpp."""
