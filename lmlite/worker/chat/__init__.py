"""From messages to a prompt, and from a completion to a message."""
