"""Builds a response from the typed events of its stream, and checks each against earlier ones."""

from copy import deepcopy
from typing import Any

Json = dict[str, Any]

ENDS = ("response.completed", "response.incomplete", "response.failed")
DELTAS = (
    "response.output_text.delta",
    "response.reasoning_text.delta",
    "response.function_call_arguments.delta",
    "response.custom_tool_call_input.delta",
)
FIELDS = {"function_call": "arguments", "custom_tool_call": "input"}  # that deltas extend


def folded(events: list[Json]) -> Json:
    """The last event's response. Checks that the earlier events add up to it."""
    created, in_progress, *middle, end = events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (created["type"], in_progress["type"]) == ("response.created", "response.in_progress")
    assert end["type"] == f"response.{end['response']['status']}"
    assert end["type"] in ENDS
    begun = created["response"]
    assert begun == in_progress["response"]
    assert (begun["status"], begun["output"]) == ("in_progress", [])
    output: list[Json] = []
    for event in middle:
        _apply(event, output)
    whole: Json = end["response"]
    assert whole["output"] == output
    changed = {"status", "output", "usage", "incomplete_details", "error"}
    assert {key: whole[key] for key in whole.keys() - changed} == {
        key: begun[key] for key in begun.keys() - changed
    }
    return whole


def _apply(event: Json, output: list[Json]) -> None:
    kind = event["type"]
    if kind == "response.output_item.added":
        item = deepcopy(event["item"])
        assert event["output_index"] == len(output)
        assert item["status"] == "in_progress"
        if item["type"] == "tool_search_call":
            assert item["arguments"] == {}
        else:
            field = FIELDS.get(item["type"])
            assert item[field or "content"] == ("" if field else [])
        output.append(item)
        return
    item = output[event["output_index"]]
    assert item["status"] == "in_progress", "nothing follows the end of an item"
    if kind == "response.output_item.done":
        assert event["item"]["status"] in ("completed", "incomplete")
        item["status"] = event["item"]["status"]
        if item["type"] == "tool_search_call":  # its arguments come in one piece
            item["arguments"] = event["item"]["arguments"]
        # Only items include the bytes of log-probabilities.
        assert without_bytes(event["item"]) == without_bytes(item)
        output[event["output_index"]] = event["item"]
        return
    assert event["item_id"] == item["id"]
    if kind == "response.content_part.added":
        item["content"].append(deepcopy(event["part"]))
    elif kind == "response.content_part.done":
        assert without_bytes(event["part"]) == without_bytes(item["content"][0])
    elif kind in DELTAS:
        assert event["delta"]
        _lengthen(item, event)
    else:
        _check_end(item, event)


def _lengthen(item: Json, event: Json) -> None:
    if field := FIELDS.get(item["type"]):
        item[field] += event["delta"]
        return
    part = item["content"][event["content_index"]]
    part["text"] += event["delta"]
    part.get("logprobs", []).extend(event.get("logprobs", []))


def _check_end(item: Json, event: Json) -> None:
    assert event["type"].removesuffix(".done") + ".delta" in DELTAS
    if item["type"] == "function_call":
        assert (event["name"], event["arguments"]) == (item["name"], item["arguments"])
        return
    if item["type"] == "custom_tool_call":
        assert event["input"] == item["input"]
        return
    part = item["content"][event["content_index"]]
    assert event["text"] == part["text"]
    assert event.get("logprobs") == part.get("logprobs")


def without_bytes(value: Any) -> Any:
    """The same value, without the bytes of tokens."""
    if isinstance(value, list):
        return [without_bytes(item) for item in value]
    if isinstance(value, dict):
        return {key: without_bytes(item) for key, item in value.items() if key != "bytes"}
    return value


def nameless(response: Json) -> Json:
    """The parts that are equal for the same request: everything except ids, time and cache."""
    found = deepcopy(response)
    for name in ("id", "created_at"):
        del found[name]
    for item in found["output"]:
        assert item.pop("id")
        item.pop("call_id", None)
    if "usage" in found:
        del found["usage"]["input_tokens_details"]
    return found
