"""`videos` and `sessions`: what the service keeps, listed, shown and erased."""

from collections.abc import Callable, Sequence

from service.terminal.client import Client
from service.terminal.connection import Document
from service.terminal.printing import moment, say, say_json, say_table

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
        moment(video.get("created_at")),
        str(video.get("filename")),
    )


def _session_row(session: Document) -> tuple[str, ...]:
    videos = " ".join(map(str, session.get("video_ids") or ()))
    return str(session.get("id")), str(session.get("model")), moment(session.get("created_at")), videos


_TABLES: dict[str, tuple[tuple[str, ...], _Row]] = {
    "videos": (("id", "status", "length", "size", "uploaded", "name"), _video_row),
    "sessions": (("id", "model", "opened", "videos"), _session_row),
}


def print_newest(client: Client, kind: str, *, limit: int, as_json: bool) -> None:
    """The newest records of a kind."""
    found = client.newest(kind, limit=limit)
    if as_json:
        say_json(found)
        return
    titles, row = _TABLES[kind]
    say_table(titles, [row(record) for record in found["data"]])
    if found["has_more"]:
        say(f"There are more; --limit {2 * limit} shows them.")


def print_one(client: Client, kind: str, record_id: str, *, as_json: bool) -> None:
    """One record with all its fields; a session with what was said."""
    record = client.get(kind, record_id)
    messages = client.messages(record_id) if kind == "sessions" else None
    if as_json:
        say_json(record if messages is None else record | {"messages": messages})
        return
    say_table(("field", "value"), [(name, _shown(name, value)) for name, value in record.items()])
    for message in messages or ():
        mark = "> " if message.get("role") == "user" else ""
        say(f"{mark}{message.get('content')}")


def erase(client: Client, kind: str, record_ids: Sequence[str], *, as_json: bool) -> None:
    """Erase records, one after the other, up to the first that cannot be erased."""
    for record_id in record_ids:
        erased = client.delete(kind, record_id)
        if as_json:
            say_json(erased, indent=None)
        else:
            say(f"{record_id} is erased.")


def _shown(name: str, value: object) -> str:
    match value:
        case None:
            return ""
        case _ if name.endswith("_at"):
            return moment(value)
        case list() if name == "frames":
            return " ".join(f"{float(frame.get('timestamp', 0)):.2f}s" for frame in value)
        case list():
            return " ".join(map(str, value))
        case dict():
            return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
        case _:
            return str(value)
