"""Sends single HTTP requests to a service, and turns every error into a `Failure`."""

import contextlib
import json
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2

from service.terminal.failures import Exit, Failure, usage_error

Document = dict[str, Any]

_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)


class Connection:
    """An HTTP connection to the service at `url`, authenticated by an API key if there is one."""

    def __init__(self, url: str, *, api_key: str | None, transport: httpx2.BaseTransport | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise usage_error(
                f"{url} is not the address of a service. An address is, for example, http://127.0.0.1:8000."
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise usage_error("The API key contains invalid characters.")
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT, transport=transport)
        except (ImportError, ValueError, OSError) as error:  # for example a proxy or a certificate in the environment
            raise usage_error(f"The HTTP settings in the environment are invalid: {error}") from error

    def close(self) -> None:
        """Close all sockets."""
        self._http.close()

    def document(self, method: str, path: str, **request: Any) -> Document:
        """Send a request; returns the JSON object of the response."""
        with self.reply(method, path, **request) as reply:
            found = _parsed(reply.read())
        if found is None:
            raise self._not_reeltalk()
        return found

    def headers(self, method: str, path: str, **request: Any) -> httpx2.Headers:
        """Send a request; returns the headers of the response."""
        with self.reply(method, path, **request) as reply:
            reply.read()
            return reply.headers

    @contextlib.contextmanager
    def reply(self, method: str, path: str, **request: Any) -> Iterator[httpx2.Response]:
        """Send a request; yields the response, whose body is still to be read.

        Raises:
            Failure: the response is an error, or the connection fails, also while the block reads the body.
        """
        try:
            with self._http.stream(method, path, **request) as reply:
                if not reply.is_success:
                    raise self._refusal(reply)
                yield reply
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            message = f"The connection to {self.url} was lost."
            raise Failure(Exit.UNREACHABLE, message, code="connection_lost", is_transient=True) from error
        except httpx2.InvalidURL as error:
            raise usage_error(f"{self.url} is not the address of a service.") from error

    def _refusal(self, reply: httpx2.Response) -> Failure:
        header = reply.headers.get("retry-after", "")
        retry_after = float(header) if header.isdecimal() else None
        document = _parsed(reply.read())
        if document is not None and "error" in document:
            return Failure.from_envelope(document, retry_after=retry_after)
        if reply.status_code in {502, 503, 504}:
            message = f"{self.url} responds with status {reply.status_code}: the service behind it is not available."
            return Failure(Exit.NOT_NOW, message, code="bad_gateway", is_transient=True, retry_after=retry_after or 2.0)
        return self._not_reeltalk()

    def _unreachable(self, error: BaseException) -> Failure:
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, ssl.SSLError) for cause in causes) or "SSL" in str(error):
            message = f"No secure connection to {self.url}: {error}"
            return Failure(Exit.UNREACHABLE, message, code="insecure")
        message = f"No service responds at {self.url}. Start one with `reeltalk serve`, or name one with --server."
        return Failure(Exit.UNREACHABLE, message, code="unreachable")

    def _not_reeltalk(self) -> Failure:
        return Failure(Exit.UNREACHABLE, f"The server at {self.url} is not Reeltalk.", code="not_reeltalk")


def _parsed(body: bytes) -> Document | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
