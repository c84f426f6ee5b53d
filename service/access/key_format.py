"""API keys as text: `rtk_<number>_<secret>`. Only a hash of the secret is stored."""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

from service.access.scopes import LOCAL, Scope
from service.store.api_keys import ApiKeyRecord

_BEARER = re.compile(r"(?i:bearer) +rtk_([0-9a-f]{32})_([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """A key as a client sends it; whether it exists is not known yet."""

    key_id: str
    secret_sha256: str

    def matches(self, record: ApiKeyRecord | None) -> bool:
        """Whether this is the key of the record. Takes equally long without a record, so timing reveals nothing."""
        stored = _hash("") if record is None else record.secret_sha256
        return hmac.compare_digest(self.secret_sha256, stored) and record is not None


def presented_key(authorization: str | None) -> PresentedKey | None:
    """The key in an `Authorization` header; None without one, or if it is not in the form of a key."""
    found = _BEARER.fullmatch(authorization or "")
    return None if found is None else PresentedKey(f"key_{found[1]}", _hash(found[2]))


def new_key(
    *,
    name: str,
    tenant: str = LOCAL,
    scopes: tuple[Scope, ...] = (Scope.USE,),
    expires_at: float | None = None,
    requests_per_minute: int | None = None,
    concurrent_answers: int | None = None,
    stored_bytes: int | None = None,
    max_priority: int | None = None,
) -> tuple[str, ApiKeyRecord]:
    """Generate a key with 256 random bits.

    Returns:
        The key as its owner sends it, which cannot be recovered later, and the record to store.
    """
    secret, number = secrets.token_hex(32), secrets.token_hex(16)
    record = ApiKeyRecord(
        id=f"key_{number}",
        secret_sha256=_hash(secret),
        name=name,
        tenant=tenant,
        scopes=scopes,
        created_at=time.time(),
        expires_at=expires_at,
        requests_per_minute=requests_per_minute,
        concurrent_answers=concurrent_answers,
        stored_bytes=stored_bytes,
        max_priority=max_priority,
    )
    return f"rtk_{number}_{secret}", record


def _hash(secret: str) -> str:
    # Plain SHA-256 is enough: no dictionary attack works on 256 random bits.
    return hashlib.sha256(secret.encode()).hexdigest()
