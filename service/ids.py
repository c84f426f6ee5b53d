"""Names of things: every id has a prefix that says what it is, and 128 bits that nobody guesses."""

import hashlib
import re
import secrets
from typing import Literal

Prefix = Literal["ses", "msg", "ans", "req", "rep", "chatcmpl", "upl", "own", "key"]

_VIDEO_NAME = re.compile(r"(?:vid_|file-)([0-9a-f]{32})")


def new_id(prefix: Prefix) -> str:
    """A fresh random id, e.g. `ses_5f0c…`."""
    return f"{prefix}_{secrets.token_hex(16)}"


def video_id(tenant: str, sha256: str) -> str:
    """The id of a video: the same bytes of the same tenant have the same id on every replica, without asking."""
    framed = f"{len(tenant)}:{tenant}:{sha256}".encode()
    return "vid_" + hashlib.sha256(framed).hexdigest()[:32]


def file_id(video_id: str) -> str:
    """What a video is called among OpenAI's files: `vid_5f0c…` is `file-5f0c…`."""
    return "file-" + video_id.removeprefix("vid_")


def video_id_of(name: str) -> str | None:
    """The video that a client means by a file's or a video's id; None if it is neither."""
    found = _VIDEO_NAME.fullmatch(name)
    return None if found is None else f"vid_{found[1]}"
