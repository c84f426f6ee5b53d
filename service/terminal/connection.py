"""The wire to a service: one request, one reply. Whatever goes wrong on it is a `Failure` with a sentence."""

import contextlib
import json
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2

from service.terminal.failures import Exit, Failure, misused

Document = dict[str, Any]

_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)


class Connection:
    """Speaks HTTP to the service at `url`, under an API key if there is one."""

    def __init__(self, url: str, *, api_key: str | None, transport: httpx2.BaseTransport | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise misused(f"{url} is not the address of a service; one looks like http://127.0.0.1:8000.")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise misused("The API key has characters that no key has.")
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT, transport=transport)
        except (ImportError, ValueError, OSError) as error:  # a proxy or a certificate that the environment names
            raise misused(f"The environment's settings for HTTP cannot be used: {error}") from error

    def close(self) -> None:
        """Let go of every socket."""
        self._http.close()

    def document(self, method: str, path: str, **request: Any) -> Document:
        """The JSON object of a reply that is no error."""
        with self.reply(method, path, **request) as reply:
            found = _parsed(reply.read())
        if found is None:
            raise self._stranger()
        return found

    def headers(self, method: str, path: str, **request: Any) -> httpx2.Headers:
        """The headers of a reply that is no error."""
        with self.reply(method, path, **request) as reply:
            reply.read()
            return reply.headers

    @contextlib.contextmanager
    def reply(self, method: str, path: str, **request: Any) -> Iterator[httpx2.Response]:
        """A reply that is no error, still to be read; what goes wrong in the block is a `Failure` too."""
        try:
            with self._http.stream(method, path, **request) as reply:
                if not reply.is_success:
                    raise self._refusal(reply)
                yield reply
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            message = f"The connection to {self.url} was lost."
            raise Failure(Exit.UNREACHABLE, message, code="connection_lost", is_passing=True) from error
        except httpx2.InvalidURL as error:
            raise misused(f"{self.url} is not the address of a service.") from error

    def _refusal(self, reply: httpx2.Response) -> Failure:
        told = reply.headers.get("retry-after", "")
        retry_after = float(told) if told.isdecimal() else None
        document = _parsed(reply.read())
        if document is not None and "error" in document:
            return Failure.of_envelope(document, retry_after=retry_after)
        if reply.status_code in {502, 503, 504}:
            message = f"{self.url} answers with status {reply.status_code}: the service behind it is away."
            return Failure(Exit.NOT_NOW, message, code="bad_gateway", is_passing=True, retry_after=retry_after or 2.0)
        return self._stranger()

    def _unreachable(self, error: BaseException) -> Failure:
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, ssl.SSLError) for cause in causes) or "SSL" in str(error):
            message = f"No secure connection to {self.url}: {error}"
            return Failure(Exit.UNREACHABLE, message, code="insecure")
        message = f"No service answers at {self.url}. Start one with `reeltalk serve`, or name one with --server."
        return Failure(Exit.UNREACHABLE, message, code="unreachable")

    def _stranger(self) -> Failure:
        return Failure(Exit.UNREACHABLE, f"What answers at {self.url} is not Reeltalk.", code="not_reeltalk")


def _parsed(body: bytes) -> Document | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
