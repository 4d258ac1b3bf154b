"""The tests of lmlite; `make test` runs them."""
