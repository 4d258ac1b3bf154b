"""The cache of computed tokens: lanes in the context's memory, and checkpoints outside it."""
