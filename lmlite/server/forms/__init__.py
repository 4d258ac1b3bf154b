"""JSON schemas and grammars of clients, checked and made fit for a grammar."""
