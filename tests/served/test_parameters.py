"""Each parameter of a request has exactly the effect on the outcome that it should have."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.server_process import RunningServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
# A story can continue in many ways, here with one of forty adjectives.
STORY = "Tell me a story."
BEGUN = (
    "<|im_start|>user\nTell me a story.<|im_end|>\n"
    "<|im_start|>assistant\nOnce upon a time there was a"
)
HOT = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def content(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def complete(server: RunningServer, prompt: Any, **body: Any) -> Any:
    answer = server.post(TEXT, prompt=prompt, **{"temperature": 0, **body})
    assert answer.status == 200, answer.body
    return answer.json


def first_token(server: RunningServer, **body: Any) -> str:
    entries = server.chat("Hi", logprobs=True, max_tokens=1, **body)["choices"][0]["logprobs"]
    return str(entries["content"][0]["token"])


def token_id(server: RunningServer, text: str) -> int:
    """The id of the only token whose bias of +100 makes the model say this text."""
    for token in range(3, 1600):
        said = complete(server, "x", max_tokens=1, logit_bias={str(token): 100})
        if said["choices"][0]["text"] == text:
            return token
    raise AssertionError(f"no token says {text!r}")


# ---- model, messages, max_tokens, stream, stop -----------------------------------------------


def test_model_selects_by_name_and_the_answer_says_who_answered(server: RunningServer) -> None:
    named = server.chat("Hi", model=server.model)
    unnamed = server.chat("Hi")
    assert named["model"] == unnamed["model"] == server.model == "tiny"
    unknown = server.post(CHAT, model="other", messages=[{"role": "user", "content": "Hi"}])
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")


def test_messages_become_prompt_tokens_one_by_one(server: RunningServer) -> None:
    def n_prompt(*contents: str) -> int:
        messages = [{"role": "user", "content": text} for text in contents]
        usage = server.post(CHAT, messages=messages, max_tokens=1).json["usage"]
        return int(usage["prompt_tokens"])

    alone = complete(server, "zqj", max_tokens=0)["usage"]["prompt_tokens"]
    assert n_prompt("zqjzqj") - n_prompt("zqj") == alone == 3
    assert n_prompt("zqj", "zqj") > n_prompt("zqjzqj")


def test_max_tokens_counts_sampled_tokens(server: RunningServer) -> None:
    whole = server.chat("Hi")
    n_whole = whole["usage"]["completion_tokens"]
    for field in ("max_tokens", "max_completion_tokens"):
        cut = server.chat("Hi", **{field: 3})
        assert cut["usage"]["completion_tokens"] == 3
        assert cut["choices"][0]["finish_reason"] == "length"
        assert content(whole).startswith(content(cut))
    for unlimited in (None, -1):
        assert content(server.chat("Hi", max_tokens=unlimited)) == content(whole)
    # The end token counts too: with one token fewer, only it is cut off, but no text.
    nearly = server.chat("Hi", max_tokens=n_whole - 1)
    assert content(nearly) == content(whole)
    assert nearly["choices"][0]["finish_reason"] == "length"
    assert whole["choices"][0]["finish_reason"] == "stop"


def test_max_tokens_of_zero_reads_the_prompt_only(server: RunningServer) -> None:
    answer = server.chat("Hi", max_tokens=0)
    assert (content(answer), answer["choices"][0]["finish_reason"]) == ("", "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] > 0


def test_max_completion_tokens_wins_over_max_tokens(server: RunningServer) -> None:
    answer = server.chat("Hi", max_tokens=9, max_completion_tokens=2)
    assert answer["usage"]["completion_tokens"] == 2


def test_ignore_eos_and_min_tokens_hold_in_each_api(server: RunningServer) -> None:
    def n_said(path: str, field: str, **body: Any) -> int:
        usage = server.post(path, temperature=0, **{field: 30}, **body).json["usage"]
        return int(usage.get("completion_tokens") or usage["output_tokens"])

    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    for more in ({"ignore_eos": True}, {"min_tokens": 30}):
        assert n_said("/v1/chat/completions", "max_tokens", **asked, **more) == 30
        assert n_said("/v1/completions", "max_tokens", prompt="Hi", **more) == 30
        assert n_said("/v1/messages", "max_tokens", **asked, **more) == 30
        assert n_said("/v1/responses", "max_output_tokens", input="Hi", **more) == 30


def test_min_tokens_above_max_tokens_is_refused(server: RunningServer) -> None:
    answer = server.post("/v1/completions", prompt="Hi", max_tokens=5, min_tokens=6)
    assert (answer.status, answer.error["param"]) == (400, "min_tokens")


def test_a_stream_gives_the_same_text_in_pieces(server: RunningServer) -> None:
    ask = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    *chunks, done = server.stream(CHAT, **ask)
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert done == "[DONE]"
    assert len(deltas) > 5
    assert "".join(deltas) == content(server.chat("Hi"))


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_cuts_before_the_string(server: RunningServer, as_list: bool) -> None:
    whole = content(server.chat("Hi"))
    stop = whole[10:14]  # may begin or end within a token
    answer = server.chat("Hi", stop=["nowhere", stop] if as_list else stop)
    assert content(answer) == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_stop_never_leaks_a_part_into_a_stream(server: RunningServer) -> None:
    whole = content(server.chat("Hi"))
    ask = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    for begin in range(1, 20, 3):
        stop = whole[begin : begin + 5]
        *chunks, _ = server.stream(CHAT, **ask, stop=stop)
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        assert text == whole[: whole.index(stop)]


# ---- temperature, top_k, top_p, min_p, seed --------------------------------------------------


def test_temperature_0_is_greedy_and_a_high_temperature_is_not(server: RunningServer) -> None:
    greedy = {content(server.chat("Hi", seed=seed)) for seed in range(5)}
    hot = {content(server.chat(STORY, **HOT, seed=seed, max_tokens=40)) for seed in range(5)}
    assert len(greedy) == 1
    assert len(hot) == 5


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_keeping_one_token_is_greedy_at_any_temperature(
    server: RunningServer, cut: dict[str, float]
) -> None:
    greedy = content(server.chat("Hi"))
    assert {content(server.chat("Hi", **{**HOT, **cut}, seed=seed)) for seed in range(5)} == {
        greedy
    }


def test_top_k_lets_k_tokens_through(server: RunningServer) -> None:
    answer = complete(server, BEGUN, logprobs=5, max_tokens=1)
    top: dict[str, float] = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    likeliest = sorted(top, key=lambda text: top[text], reverse=True)
    # Only tokens with a clear lead: rounding decides between nearly equal ones.
    clear = [k for k in (1, 2, 3, 4) if top[likeliest[k - 1]] - top[likeliest[k]] > 0.1]
    assert len(clear) >= 2
    for k in clear:
        hot = [complete(server, BEGUN, **{**HOT, "top_k": k}, seed=seed, max_tokens=1)
               for seed in range(40)]  # fmt: skip
        assert {said["choices"][0]["text"] for said in hot} == set(likeliest[:k])


def test_a_seed_fixes_what_is_drawn(server: RunningServer) -> None:
    # One token each: later tokens would also depend on the rounding of earlier ones.
    def drawn() -> list[str]:
        answers = (complete(server, BEGUN, **HOT, seed=seed, max_tokens=1) for seed in range(20))
        return [answer["choices"][0]["text"] for answer in answers]

    first, second = drawn(), drawn()
    assert first == second
    assert len(set(first)) > 10


@pytest.mark.parametrize("seed", [2**32 - 2, 2**32 - 1])
def test_the_largest_seeds_fix_the_answer_too(server: RunningServer, seed: int) -> None:
    def drawn() -> list[str]:
        answer = complete(server, BEGUN, **HOT, seed=seed, n=8, max_tokens=1)
        return [choice["text"] for choice in answer["choices"]]

    first, second = drawn(), drawn()
    assert first == second
    assert len(set(first)) > 4


# ---- logit_bias and penalties ----------------------------------------------------------------


@pytest.fixture(scope="module")
def duel(server: RunningServer) -> tuple[int, int, dict[str, float]]:
    """Tokens a and b, and biases: after a, a leads b by 1.0 and all other tokens by far."""
    a, b = token_id(server, "a"), token_id(server, "b")

    def logprob(token: int) -> float:
        said = complete(server, [a], max_tokens=1, logprobs=0, logit_bias={str(token): 100})
        return float(said["choices"][0]["logprobs"]["token_logprobs"][0])

    return a, b, {str(a): 60.0, str(b): 59.0 + logprob(a) - logprob(b)}


def test_a_bias_of_plus_100_forces_a_token_and_minus_100_bans_it(server: RunningServer) -> None:
    a = token_id(server, "a")
    assert (
        complete(server, "x", max_tokens=4, logit_bias={str(a): 100})["choices"][0]["text"]
        == "aaaa"
    )
    usual = first_token(server)
    banned = token_id(server, usual)
    whole = content(server.chat("Hi"))
    without = content(server.chat("Hi", logit_bias={str(banned): -100}))
    assert whole.startswith(usual)
    assert not without.startswith(usual)


def test_the_duel_is_a_draw_without_penalties(server: RunningServer, duel: Any) -> None:
    a, _, bias = duel
    text = complete(server, [a], max_tokens=6, logit_bias=bias)["choices"][0]["text"]
    assert text == "aaaaaa"


@pytest.mark.parametrize(
    ("penalty", "expected"), [(0.3, "aaaab"), (0.4, "aaab"), (0.6, "aab"), (1.1, "ab")]
)
def test_frequency_penalty_subtracts_once_per_sampled_occurrence(
    server: RunningServer, duel: Any, penalty: float, expected: str
) -> None:
    a, _, bias = duel
    n = len(expected)
    said = complete(server, [a], max_tokens=n, logit_bias=bias, frequency_penalty=penalty)
    assert said["choices"][0]["text"] == expected


@pytest.mark.parametrize(("penalty", "expected"), [(0.9, "aaaa"), (1.1, "ab")])
def test_presence_penalty_subtracts_once(
    server: RunningServer, duel: Any, penalty: float, expected: str
) -> None:
    a, _, bias = duel
    n = len(expected)
    said = complete(server, [a], max_tokens=n, logit_bias=bias, presence_penalty=penalty)
    assert said["choices"][0]["text"] == expected


def test_repeat_penalty_divides_the_logit_of_what_the_prompt_holds(
    server: RunningServer, duel: Any
) -> None:
    a, _, bias = duel
    for penalty, expected in ((1.0, "a"), (2.0, "b")):
        said = complete(server, [a], max_tokens=1, logit_bias=bias, repeat_penalty=penalty)
        assert said["choices"][0]["text"] == expected


# ---- n, echo, logprobs, usage ----------------------------------------------------------------


def test_n_choices_have_seeds_of_their_own_and_share_the_prompt(server: RunningServer) -> None:
    # In a larger batch, numbers are rounded differently. With ten digits far ahead of all other
    # tokens, this hardly ever changes which token a seed draws.
    draw = HOT | {"logit_bias": {str(token_id(server, digit)): 60 for digit in "0123456789"}}
    answer = server.chat(STORY, **draw, seed=3, n=3, max_tokens=5)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    alone = [server.chat(STORY, **draw, seed=seed, max_tokens=5) for seed in (3, 4, 5)]
    assert texts == [content(single) for single in alone]
    usage = [single["usage"] for single in alone]
    assert answer["usage"]["prompt_tokens"] == usage[0]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == sum(each["completion_tokens"] for each in usage)


def test_several_prompts_times_n_are_indexed_prompt_first(server: RunningServer) -> None:
    answer = complete(server, ["Hi", "a"], n=2, max_tokens=2, echo=True)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [text[0] for text in texts] == ["H", "H", "a", "a"]
    assert answer["usage"]["prompt_tokens"] == sum(
        complete(server, prompt, max_tokens=0)["usage"]["prompt_tokens"] for prompt in ("Hi", "a")
    )


def test_the_four_forms_of_a_prompt_agree(server: RunningServer) -> None:
    a = token_id(server, "a")
    forms = ["aa", ["aa"], [a, a], [[a, a]]]
    answers = [complete(server, form, max_tokens=5)["choices"][0]["text"] for form in forms]
    assert len(set(answers)) == 1


def test_echo_with_logprobs_and_max_tokens_0_scores_the_prompt(server: RunningServer) -> None:
    choice = complete(server, "Hello", max_tokens=0, echo=True, logprobs=2)["choices"][0]
    scored = choice["logprobs"]
    assert choice["text"] == "Hello" == "".join(scored["tokens"])
    assert scored["token_logprobs"][0] is None
    assert scored["top_logprobs"][0] is None
    assert all(value <= 0 for value in scored["token_logprobs"][1:])
    offsets = [len("".join(scored["tokens"][:i])) for i in range(len(scored["tokens"]))]
    assert scored["text_offset"] == offsets


def test_offsets_count_characters_also_where_several_tokens_share_one(
    server: RunningServer,
) -> None:
    scored = complete(server, "éxy", max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]
    assert scored["tokens"] == ["\ufffd", "\ufffd", "x", "y"]
    assert scored["text_offset"] == [0, 0, 1, 2]


def test_legacy_alternatives_hold_the_token_itself(server: RunningServer) -> None:
    scored = complete(server, "Hello", max_tokens=0, echo=True, logprobs=1)["choices"][0][
        "logprobs"
    ]
    for token, value, top in list(
        zip(scored["tokens"], scored["token_logprobs"], scored["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == value


def test_echoed_logprobs_equal_those_of_generating_the_same_text(server: RunningServer) -> None:
    generated = complete(server, BEGUN, max_tokens=4, logprobs=0)["choices"][0]
    whole = complete(server, BEGUN + generated["text"], max_tokens=0, echo=True, logprobs=0)
    ours = generated["logprobs"]["token_logprobs"]
    theirs = whole["choices"][0]["logprobs"]["token_logprobs"][-len(ours) :]
    # Rounding differs between one token and many at once; how much depends on the processor.
    assert ours == pytest.approx(theirs, abs=0.05)


def test_chat_logprobs_hold_bytes_and_alternatives(server: RunningServer) -> None:
    choice = server.chat("Hi", logprobs=True, top_logprobs=2)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0


def test_streamed_logprobs_are_those_of_the_whole_answer(server: RunningServer) -> None:
    ask = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "logprobs": True}
    *chunks, _ = server.stream(CHAT, **ask, stop="generated")
    entries = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        if choice["logprobs"]:
            entries += choice["logprobs"]["content"]
    whole = server.chat("Hi", logprobs=True, stop="generated")["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries] == [entry["bytes"] for entry in whole]
    found = [entry["logprob"] for entry in entries]
    # Rounding of the last digits depends on the earlier contents of memory.
    assert found == pytest.approx([entry["logprob"] for entry in whole], abs=0.05)


def test_the_second_request_finds_the_prompt_in_memory(server: RunningServer) -> None:
    question = "a question that nobody asked before"
    first, second = server.chat(question)["usage"], server.chat(question)["usage"]
    assert second["prompt_tokens"] == first["prompt_tokens"]
    assert first["prompt_tokens_details"]["cached_tokens"] < 30
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert cached == second["prompt_tokens"] - 1


def test_completions_parse_control_tokens_and_chat_does_not(server: RunningServer) -> None:
    text = complete(server, "<|im_end|>", max_tokens=0)["usage"]["prompt_tokens"]
    plain = server.chat("", max_tokens=0)["usage"]["prompt_tokens"]
    spelled = server.chat("<|im_end|>", max_tokens=0)["usage"]["prompt_tokens"]
    assert text == 1
    assert spelled - plain > 1
