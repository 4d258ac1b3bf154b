"""Requests: who gets the token, where redirects lead, what each refusal says, when to try again."""

import email.message
import ssl
import time
import urllib.error
from pathlib import Path

import pytest

from lmlite.downloads import web as web_module
from lmlite.downloads.progress import DownloadError
from lmlite.downloads.web import Web, origin
from tests.downloads.conftest import Fetch, model, names_in
from tests.support.fake_hub import FakeHub, Fault

TOKEN = "hf_secret"


@pytest.fixture(autouse=True)
def repository(hub: FakeHub) -> None:
    hub.files["a/b"] = {"m.gguf": model()}


def refusal(fetch: Fetch, token: str | None = None) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch("a/b", token)
    return str(caught.value)


# ---- the token and redirects ---------------------------------------------------------------


def test_the_token_is_for_the_endpoint_and_no_other_host(hub: FakeHub, fetch: Fetch) -> None:
    fetch("a/b", TOKEN)
    sent = {(asked.server, asked.headers.get("Authorization")) for asked in hub.asked}
    assert sent == {("hub", f"Bearer {TOKEN}"), ("store", None)}


def test_an_address_elsewhere_gets_no_token(hub: FakeHub, fetch: Fetch) -> None:
    fetch(f"{hub.store_url}/a/b/resolve/main/m.gguf", TOKEN)
    assert [asked.headers.get("Authorization") for asked in hub.asked] == [None, None]


def test_another_port_of_the_same_host_is_another_host(hub: FakeHub, fetch: Fetch) -> None:
    hub.faults = [("hub /api", Fault(307, {"Location": f"{hub.store_url}/a/b/resolve/x/m.gguf"}))]
    assert refusal(fetch, TOKEN) == f"{hub.url} does not answer as Hugging Face does"
    assert hub.asked[-1].headers.get("Authorization") is None


def test_a_renamed_repository_keeps_the_token(hub: FakeHub, fetch: Fetch) -> None:
    hub.files["old/b"] = hub.files["a/b"]
    hub.faults = [("hub /api", Fault(307, {"Location": "/api/models/old/b"}))]
    fetch("a/b", TOKEN)
    assert hub.asked[1].path == "/api/models/old/b"
    assert hub.asked[1].headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_redirect_keeps_the_range(hub: FakeHub, fetch: Fetch) -> None:
    hub.faults = [("store", Fault(cut_after=100_000))]
    fetch("a/b")
    assert [asked.headers.get("Range") for asked in hub.asked_for("/resolve/")] == (
        [None] * 2 + ["bytes=100000-"] * 2
    )


def test_a_circle_of_redirects_ends(hub: FakeHub, fetch: Fetch) -> None:
    hub.faults = [("hub /api", Fault(302, {"Location": "/api/models/a/b"}))] * 20
    assert refusal(fetch) == "a/b is redirected more than 10 times"
    assert len(hub.asked) == 11


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://h/x", "http://user@h/", "http://h:x/"]
)
def test_a_redirect_leads_only_to_http(hub: FakeHub, fetch: Fetch, target: str) -> None:
    hub.faults = [("hub /api", Fault(302, {"Location": target}))]
    assert refusal(fetch) == f"'{target}' is not an address such as https://huggingface.co"


def answering(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Web:
    """Requests to https://hub.example that all end with this error."""
    web = Web("https://hub.example", None, print)

    def answer(*_: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(web._opener, "open", answer)
    return web


def test_a_redirect_from_https_never_leads_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = email.message.Message()
    headers["Location"] = "http://hub.example/x"
    error = urllib.error.HTTPError("", 302, "", headers, None)
    with pytest.raises(DownloadError) as caught:
        answering(error, monkeypatch).open("https://hub.example/a", "x")
    assert str(caught.value) == "hub.example redirects x to an address that is not https"


def test_the_proxy_of_the_environment_is_used(
    hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", hub.url)
    with pytest.raises(DownloadError):
        fetch("a/b", endpoint="http://hub.example")
    assert hub.asked[0].path == "http://hub.example/api/models/a/b"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://Hub.example", ("https", "hub.example", 443)),
        ("http://hub.example/x", ("http", "hub.example", 80)),
        ("https://hub.example:8443", ("https", "hub.example", 8443)),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, expected: tuple[str, str, int]) -> None:
    assert origin(url) == expected


@pytest.mark.parametrize(
    "url", ["", "hub.example", "https://", "https://h/a b", "https://h/\n", "https://../x"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(DownloadError, match=r"is not an address such as https://huggingface\.co"):
        Web(url, None, print)


@pytest.mark.parametrize("address", ["http://h.example/m.gguf", "http://[::2]/m.gguf"])
def test_an_address_must_be_https(fetch: Fetch, address: str) -> None:
    with pytest.raises(DownloadError, match="is not an https address"):
        fetch(address)


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "token", "message"),
    [
        (401, {}, None, "has no a/b, or gives it only to users with a token in HF_TOKEN"),
        (401, {}, TOKEN, "does not accept HF_TOKEN for a/b, or has no such model"),
        (401, {"X-Error-Code": "GatedRepo"}, None, "gives a/b only to those who have accepted its "
         "terms: accept them on its page there, and set HF_TOKEN to a token of yours"),
        (403, {}, TOKEN, "gives a/b only to those who have accepted its terms: accept them on its "
         "page there, and set HF_TOKEN to a token of yours"),
        (404, {}, TOKEN, "has no a/b"),
        (451, {}, None, "refuses a/b with status 451"),
        (429, {"Retry-After": "3600"}, None,
         "is too busy and asks to wait 3600 seconds; try it then"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_and_is_not_repeated(
    hub: FakeHub, fetch: Fetch, tmp_path: Path, status: int, headers: dict[str, str],
    token: str | None, message: str
) -> None:  # fmt: skip
    hub.faults = [("hub /api", Fault(status, headers))]
    assert refusal(fetch, token) == f"127.0.0.1 {message}"
    assert len(hub.asked) == 1
    assert names_in(tmp_path) == []


def test_a_missing_repository_is_told(hub: FakeHub, fetch: Fetch) -> None:
    del hub.files["a/b"]
    assert refusal(fetch).startswith("127.0.0.1 has no a/b, or gives it only to users with a token")


def test_a_gated_file_of_a_public_list_is_told(hub: FakeHub, fetch: Fetch) -> None:
    hub.faults = [("/resolve/", Fault(403, {"X-Error-Code": "GatedRepo"}))]
    assert refusal(fetch).startswith("127.0.0.1 gives m.gguf only to those who have accepted its")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(
    hub: FakeHub, fetch: Fetch, notes: list[str], status: int
) -> None:
    hub.faults = [("hub /api", Fault(status))] * 3 + [("store", Fault(status))] * 3
    fetch("a/b")
    says = "is too busy" if status == 429 else "fails"
    assert notes == [f"127.0.0.1 {says} (status {status}); trying again in 0 s"] * 6


def test_a_busy_server_is_asked_four_times(hub: FakeHub, fetch: Fetch) -> None:
    hub.faults = [("hub /api", Fault(500))] * 9
    assert refusal(fetch) == "127.0.0.1 fails (status 500); try it again later"
    assert len(hub.asked) == 4


def test_the_server_says_how_long_to_wait(
    hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(web_module, "PAUSES_S", (1.0, 2.0, 4.0, 8.0))
    asked = ["7", "Fri, 31 Dec 2027 23:59:59 GMT", "-1"]
    hub.faults = [("hub /api", Fault(429, {"Retry-After": text})) for text in asked]
    fetch("a/b")
    assert waits == [7, 2, 4]


def test_a_host_that_does_not_answer_is_told(fetch: Fetch, notes: list[str]) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch("a/b", endpoint="http://127.0.0.1:1")
    assert str(caught.value) == "no answer from 127.0.0.1: Connection refused; try it again later"
    assert len(notes) == 3


@pytest.mark.parametrize("token", ["a\nb", "é\u20ac"])
def test_a_token_that_cannot_be_sent_is_not_shown(fetch: Fetch, token: str) -> None:
    assert refusal(fetch, token) == (
        "a/b cannot be asked for: HF_TOKEN or the address has a wrong character"
    )


def test_a_page_of_the_list_that_is_cut_is_asked_for_again(
    hub: FakeHub, fetch: Fetch, notes: list[str]
) -> None:
    hub.faults = [("/tree/", Fault(cut_after=20))]
    fetch("a/b")
    assert notes == ["the connection was cut; trying again in 0 s"]


def test_a_certificate_that_is_not_trusted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    with pytest.raises(DownloadError) as caught:
        answering(urllib.error.URLError(error), monkeypatch).open("https://hub.example", "x")
    assert str(caught.value) == (
        "the certificate of hub.example is not trusted here (self-signed certificate); "
        "SSL_CERT_FILE names the authorities to trust"
    )
