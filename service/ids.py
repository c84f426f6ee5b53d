"""Names of things: every id has a prefix that says what it is, and 128 bits that nobody guesses."""

import hashlib
import secrets
from typing import Literal

Prefix = Literal["ses", "msg", "ans", "req", "rep", "key"]


def new_id(prefix: Prefix) -> str:
    """A fresh random id, e.g. `ses_5f0c…`."""
    return f"{prefix}_{secrets.token_hex(16)}"


def video_id(tenant: str, sha256: str) -> str:
    """The id of a video: the same bytes of the same tenant have the same id on every replica, without asking."""
    framed = f"{len(tenant)}:{tenant}:{sha256}".encode()
    return "vid_" + hashlib.sha256(framed).hexdigest()[:32]
