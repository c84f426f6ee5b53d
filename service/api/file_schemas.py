"""Schemas of OpenAI's files, which are videos under another name."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from service.api.schemas import Reply
from service.ids import file_id
from service.store.records import VideoRecord

FileId = Annotated[str, StringConstraints(pattern=r"^file-[0-9a-f]{32}$")]

_STATUS: dict[str, Literal["uploaded", "processed", "error"]] = {"ready": "processed", "failed": "error"}


class File(Reply):
    """A video in the form of OpenAI's files. `file-…` has the digits of `vid_…`."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Literal["user_data"] = "user_data"
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None

    @classmethod
    def of(cls, record: VideoRecord) -> "File":
        """Build the public form of a record."""
        return cls(
            id=file_id(record.id),
            bytes=record.bytes,
            created_at=int(record.created_at),
            filename=record.filename,
            status=_STATUS.get(record.status, "uploaded"),
            status_details=None if record.error is None else record.error.message,
        )


class FileList(Reply):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Reply):
    """A file was deleted, and its video."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
