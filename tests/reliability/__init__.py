"""The reliability that the server promises, and the tests that show it."""
