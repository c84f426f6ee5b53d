"""Ids of records: a prefix that names the kind of record, and 128 bits that cannot be guessed."""

import hashlib
import re
import secrets
from typing import Literal

Prefix = Literal["ses", "msg", "ans", "req", "rep", "chatcmpl", "upl", "own", "key"]

_VIDEO_NAME = re.compile(r"(?:vid_|file-)([0-9a-f]{32})")


def new_id(prefix: Prefix) -> str:
    """Create a random id, for example `ses_5f0c…`."""
    return f"{prefix}_{secrets.token_hex(16)}"


def video_id(tenant: str, sha256: str) -> str:
    """Compute the id of a video from its content, so that it is the same on every replica.

    Args:
        tenant: the tenant that owns the video; two tenants have different ids for the same content.
        sha256: the SHA-256 of the file, as 64 hexadecimal digits.
    """
    framed = f"{len(tenant)}:{tenant}:{sha256}".encode()
    return "vid_" + hashlib.sha256(framed).hexdigest()[:32]


def file_id(video_id: str) -> str:
    """The id of a video in the `/v1/files` routes: `vid_5f0c…` becomes `file-5f0c…`."""
    return "file-" + video_id.removeprefix("vid_")


def video_id_of(name: str) -> str | None:
    """The id of the video that a `vid_…` or `file-…` id names; None if `name` is neither."""
    found = _VIDEO_NAME.fullmatch(name)
    return None if found is None else f"vid_{found[1]}"
