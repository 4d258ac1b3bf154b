"""lmlite beside llama-server, or any other server, measured in turn: `make bench`."""
