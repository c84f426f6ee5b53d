"""Callers: the tenant that a request acts for, what it may do, and its limits."""

from dataclasses import dataclass

from service.access.scopes import LOCAL, MAX_PRIORITY, Scope


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a caller may use; None is unlimited."""

    requests_per_minute: int | None = None
    concurrent_answers: int | None = None
    stored_bytes: int | None = None
    max_priority: int = MAX_PRIORITY


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """The sender of a request; `key_id` is None where the service requires no key."""

    tenant: str
    key_id: str | None
    scopes: frozenset[Scope]
    limits: Limits


ANONYMOUS = Caller(tenant=LOCAL, key_id=None, scopes=frozenset(Scope), limits=Limits())
"""The caller of every request to a service that requires no key."""
