"""Which endpoint a path means, however a client came to spell it; pure.

Clients put `/v1/chat/completions` or `/chat/completions` behind a base URL that their user typed
with `/v1` or without, and with a slash at its end or without.
"""

# The first word of paths that belong to no API, and have no version.
OWN = {"health", "metrics", "log", "tokenize", "detokenize", "tokenizer_info"}


def endpoint(path: str) -> str:
    """The path as the table of routes has it.

    >>> endpoint("/v1//v1/chat/completions/")
    '/v1/chat/completions'
    >>> endpoint("//health")
    '/health'
    """
    words = [word for word in path.split("/") if word]
    while words[:1] == ["v1"]:
        del words[0]
    version = [] if words[:1] and words[0] in OWN else ["v1"]
    return "/".join(["", *version, *words])
