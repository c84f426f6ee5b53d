"""Authentication: which caller a request comes from, and whether it may make the request."""

from service.access.callers import ANONYMOUS, Caller, Limits
from service.access.key_format import presented_key
from service.access.scopes import Scope
from service.errors import Forbidden, LimitExceeded, Unauthenticated
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.api_keys import ApiKeyRecord, ApiKeyStore

_PUBLIC_PATHS = {"/", "/healthz", "/readyz"}
"""The page and the health checks."""


def required_scope(path: str) -> Scope | None:
    """The scope that a path requires; None for a public path. Every path that is not listed here requires a key."""
    if path in _PUBLIC_PATHS or path.startswith("/static/"):
        return None
    if path == "/admin" or path.startswith("/admin/"):
        return Scope.ADMIN
    return Scope.METRICS if path == "/metrics" else Scope.USE


class Authentication:
    """Identifies callers by their API keys, and enforces scopes and request rates."""

    def __init__(self, keys: ApiKeyStore, *, settings: Settings, metrics: Metrics) -> None:
        self._keys = keys
        self._settings = settings
        self._metrics = metrics

    async def is_open(self) -> bool:
        """Whether the service requires no key: none was ever added, and the settings allow it."""
        return self._settings.may_be_open and not await self._keys.any()

    async def authenticate(self, authorization: str | None, scope: Scope) -> Caller:
        """The caller that sends this `Authorization` header. A request with scope `use` counts against its rate.

        With a key, this takes one round trip to the store.

        Raises:
            Unauthenticated: there is no key, or it is not valid.
            Forbidden: the key does not have the scope.
            LimitExceeded: the key has made too many requests.
        """
        key = presented_key(authorization)
        if key is None:
            return await self._without_key(authorization)
        default = self._settings.key_requests_per_minute
        record, wait = await self._keys.get_and_count(
            key.key_id, secret_sha256=key.secret_sha256, scope=scope, default_per_minute=default
        )
        is_known = key.matches(record)
        if record is None:
            return await self._without_key(authorization)
        if not is_known:
            raise _unknown_key()
        if not record.is_valid():
            raise Unauthenticated("invalid_key", "This key has expired or was revoked.")
        if scope not in record.scopes:
            raise Forbidden("missing_scope", f"This key does not have the scope `{scope}`.")
        limits = self._limits(record)
        if wait:
            self._metrics.admission_rejections.labels("requests_per_minute").inc()
            raise LimitExceeded(
                "too_many_requests",
                f"This key may make {limits.requests_per_minute} requests a minute.",
                retry_after=wait,
            )
        return Caller(tenant=record.tenant, key_id=record.id, scopes=frozenset(record.scopes), limits=limits)

    async def _without_key(self, authorization: str | None) -> Caller:
        if await self.is_open():
            return ANONYMOUS
        if not authorization:
            raise Unauthenticated("missing_key", "Send an API key in the header `Authorization: Bearer …`.")
        raise _unknown_key()

    def _limits(self, record: ApiKeyRecord) -> Limits:
        settings = self._settings
        return Limits(
            requests_per_minute=record.requests_per_minute or settings.key_requests_per_minute,
            concurrent_answers=record.concurrent_answers or settings.key_concurrent_answers,
            stored_bytes=record.stored_bytes or settings.key_stored_bytes,
            max_priority=settings.key_max_priority if record.max_priority is None else record.max_priority,
        )


def _unknown_key() -> Unauthenticated:
    return Unauthenticated("invalid_key", "There is no such API key.")
