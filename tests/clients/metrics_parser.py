"""Prometheus's Python package: its parser reads /metrics, and finds what the requests have done.

In an environment of its own: `python -m tests.clients.metrics_parser URL MODEL`.
"""

import sys
import urllib.request

from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families as parsed


def main(url: str, model: str) -> None:
    """Asks, and reads the counts before and after; prints how many families there are."""
    before = counts(url)
    client = OpenAI(base_url=f"{url}/v1", api_key="lm-studio")
    ask = {"model": model, "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}
    client.chat.completions.create(**ask)
    after = counts(url)
    key = "lmlite_requests_total", (("path", "/v1/chat/completions"), ("status", "200"))
    assert after[key] == before.get(key, 0) + 1
    print(f"{len(after)} samples")


def counts(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Each sample, by its name and its labels; none comes twice, and each has a description."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        families = list(parsed(reply.read().decode()))
    assert all(family.documentation and family.type != "unknown" for family in families)
    samples = [each for family in families for each in family.samples]
    found = {(each.name, tuple(sorted(each.labels.items()))): each.value for each in samples}
    assert len(found) == len(samples)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
