"""Requests of downloads: redirects, the token, refusals, and when to try again.

Proxies and certificates are those of the environment (https_proxy, no_proxy, SSL_CERT_FILE).
"""

import http.client
import json
import re
import ssl
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import lmlite
from lmlite.downloads.progress import DownloadError

T = TypeVar("T")

TIMEOUT_S = 30.0  # of silence
PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # before the second attempt and the following ones
MAX_PAUSE_S = 120  # longest that a server may ask for
MAX_REDIRECTS = 10
MAX_JSON_BYTES = 32 << 20
CUT = "the connection was cut"
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 429, 500, 502, 503, 504)


class Interrupted(Exception):
    """An attempt failed in a way that may pass. `pause_s`: what the server asks to wait."""

    def __init__(self, message: str, pause_s: float = 0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an HTTPError: Web follows it, because it decides who gets the token."""

    def redirect_request(self, *_: object) -> None:
        return None


class Web:
    """Makes requests, with the token only for the endpoint itself."""

    def __init__(self, endpoint: str, token: str | None, note: Callable[[str], None]) -> None:
        """`endpoint`: the address of Hugging Face or of a server like it. Raises DownloadError."""
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self._origin = origin(self.endpoint)
        self._note = note
        self._opener = urllib.request.build_opener(_NoRedirects)

    def open(
        self, url: str, what: str, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """The response to one GET, 200 or 206. `what` names the target in errors.

        Raises Interrupted or DownloadError.
        """
        for _ in range(MAX_REDIRECTS + 1):
            scheme, host, _port = place = origin(url)
            request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310
            request.add_header("User-Agent", f"lmlite/{lmlite.__version__}")
            if self.token and place == self._origin:
                request.add_header("Authorization", f"Bearer {self.token}")
            try:
                response: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
                return response
            except urllib.error.HTTPError as err:
                with err:
                    target = err.headers.get("Location")
                    if err.code not in _REDIRECTS or not target:
                        raise self._refusal(err, what, host) from None
            except (ValueError, http.client.InvalidURL):  # whose text may show the token
                raise DownloadError(
                    f"{what} cannot be asked for: HF_TOKEN or the address has a wrong character"
                ) from None
            except (OSError, http.client.HTTPException) as err:
                raise _fault(err, host) from None
            # A header is read as latin-1, and must be written the same way.
            url = urllib.parse.urljoin(
                url, urllib.parse.quote(target, string.punctuation, "iso-8859-1", "replace")
            )
            if scheme == "https" and origin(url)[0] != "https":
                raise DownloadError(f"{host} redirects {what} to an address that is not https")
        raise DownloadError(f"{what} is redirected more than {MAX_REDIRECTS} times")

    def _refusal(self, err: urllib.error.HTTPError, what: str, host: str) -> Exception:
        """The error for a status."""
        code, reason = err.code, err.headers.get("X-Error-Code")
        if code in _BUSY:
            asked = err.headers.get("Retry-After", "")
            pause_s = int(asked) if asked.isdecimal() and asked.isascii() else 0
            message = f"{host} is too busy" if code == 429 else f"{host} fails"
            if pause_s > MAX_PAUSE_S:
                return DownloadError(f"{message} and asks to wait {pause_s} seconds; try it then")
            return Interrupted(f"{message} (status {code})", pause_s)
        if reason == "GatedRepo" or code == 403:
            return DownloadError(
                f"{host} gives {what} only to those who have accepted its terms: accept them on "
                "its page there, and set HF_TOKEN to a token of yours"
            )
        if code == 401:
            return DownloadError(
                f"{host} does not accept HF_TOKEN for {what}, or has no such model"
                if self.token
                else f"{host} has no {what}, or gives it only to users with a token in HF_TOKEN"
            )
        if code in (404, 410):
            return DownloadError(f"{host} has no {what}")
        return DownloadError(f"{host} refuses {what} with status {code}")

    def repeat(self, attempt: Callable[[], T], n_done: Callable[[], int] = lambda: 0) -> T:
        """Repeats an attempt while it is Interrupted: a few times, or as long as `n_done` grows.

        Raises DownloadError.
        """
        n_failures, n_before = 0, n_done()
        while True:
            try:
                return attempt()
            except Interrupted as err:
                n_failures = 1 if n_done() > n_before else n_failures + 1
                n_before = n_done()
                if n_failures > len(PAUSES_S):
                    raise DownloadError(f"{err}; try it again later") from None
                pause_s = max(PAUSES_S[n_failures - 1], err.pause_s)
                self._note(f"{err}; trying again in {pause_s:g} s")
                time.sleep(pause_s)

    def json(self, url: str, what: str) -> tuple[Any, str | None]:
        """(the JSON at an address of the endpoint, the address of the next page if there is one).

        Raises DownloadError.
        """

        def attempt() -> tuple[bytes, str]:
            with self.open(url, what) as response:
                text = read(response, MAX_JSON_BYTES)
                if response.length:  # the rest of the body
                    raise Interrupted(CUT)
                return text, response.headers.get("Link", "")

        text, links = self.repeat(attempt)
        target, _, relation = links.partition(";")
        next_url = urllib.parse.urljoin(url, target.strip(" <>"))
        try:
            page = json.loads(text)
        except (ValueError, RecursionError):
            raise DownloadError(f"{self.endpoint} does not answer as Hugging Face does") from None
        return page, next_url if 'rel="next"' in relation else None


def read(response: http.client.HTTPResponse, n_bytes: int) -> bytes:
    """At most so many bytes of a body; fewer only at its end. Raises Interrupted."""
    try:
        return response.read(n_bytes)
    except (OSError, http.client.HTTPException):
        raise Interrupted(CUT) from None


def origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of an http or https address. Raises DownloadError."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        host = parts.hostname or ""  # in lower case
        if re.match("[a-z0-9:]", host) and "@" not in parts.netloc and re.fullmatch("[!-~]+", url):
            return parts.scheme, host, port
    except (ValueError, KeyError):
        pass
    raise DownloadError(f"{url!a} is not an address such as https://huggingface.co")


def _fault(err: Exception, host: str) -> Exception:
    cause = getattr(err, "reason", err)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DownloadError(
            f"the certificate of {host} is not trusted here ({cause.verify_message}); "
            "SSL_CERT_FILE names the authorities to trust"
        )
    return Interrupted(f"no answer from {host}: {getattr(cause, 'strerror', None) or cause}")
