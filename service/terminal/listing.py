"""Runs `reeltalk videos` and `reeltalk sessions`: lists, shows and deletes records of the service."""

from collections.abc import Callable, Sequence

from service.terminal.client import Client
from service.terminal.connection import Document
from service.terminal.printing import format_time, print_json, print_table, print_text

_Row = Callable[[Document], tuple[str, ...]]


def _video_row(video: Document) -> tuple[str, ...]:
    duration = video.get("duration")
    length = "" if duration is None else f"{float(duration):.1f} s"
    size = f"{int(video.get('bytes') or 0) / 1e6:.1f} MB"
    return (
        str(video.get("id")),
        str(video.get("status")),
        length,
        size,
        format_time(video.get("created_at")),
        str(video.get("filename")),
    )


def _session_row(session: Document) -> tuple[str, ...]:
    videos = " ".join(map(str, session.get("video_ids") or ()))
    return str(session.get("id")), str(session.get("model")), format_time(session.get("created_at")), videos


_TABLES: dict[str, tuple[tuple[str, ...], _Row]] = {
    "videos": (("id", "status", "length", "size", "uploaded", "name"), _video_row),
    "sessions": (("id", "model", "opened", "videos"), _session_row),
}


def print_newest(client: Client, kind: str, *, limit: int, as_json: bool) -> None:
    """Print a table of the newest records of a kind."""
    found = client.newest(kind, limit=limit)
    if as_json:
        print_json(found)
        return
    titles, row = _TABLES[kind]
    print_table(titles, [row(record) for record in found["data"]])
    if found["has_more"]:
        print_text(f"There are more; use --limit {2 * limit}.")


def print_one(client: Client, kind: str, record_id: str, *, as_json: bool) -> None:
    """Print all fields of a record, and the messages of a session."""
    record = client.get(kind, record_id)
    messages = client.messages(record_id) if kind == "sessions" else None
    if as_json:
        print_json(record if messages is None else record | {"messages": messages})
        return
    print_table(("field", "value"), [(name, _shown(name, value)) for name, value in record.items()])
    for message in messages or ():
        mark = "> " if message.get("role") == "user" else ""
        print_text(f"{mark}{message.get('content')}")


def delete_records(client: Client, kind: str, record_ids: Sequence[str], *, as_json: bool) -> None:
    """Delete records one after another; stops at the first that cannot be deleted."""
    for record_id in record_ids:
        deleted = client.delete(kind, record_id)
        if as_json:
            print_json(deleted, indent=None)
        else:
            print_text(f"Deleted {record_id}.")


def _shown(name: str, value: object) -> str:
    match value:
        case None:
            return ""
        case _ if name.endswith("_at"):
            return format_time(value)
        case list() if name == "frames":
            return " ".join(f"{float(frame.get('timestamp', 0)):.2f}s" for frame in value)
        case list():
            return " ".join(map(str, value))
        case dict():
            return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
        case _:
            return str(value)
