"""Logs: one line an event, for people or as JSON. No secret and no user's text goes through here."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Literal

import structlog
from structlog.contextvars import bind_contextvars, get_contextvars

Style = Literal["text", "json"]

_IDS = ("request_id", "tenant", "upload_id", "session_id", "video_id", "answer_id", "completion_id")
_OURS = re.compile(r"[a-z]+[_-][0-9a-f]{32}")


def bound_ids() -> dict[str, str]:
    """Whose work this is, as far as it is known here: what every line from here on carries."""
    return {name: value for name, value in get_contextvars().items() if name in _IDS}


def bind_path_ids(path_params: Mapping[str, object]) -> None:
    """Let the lines of this request carry the ids in its path; what only looks like one stays out."""
    found = {name: str(value) for name, value in path_params.items() if name in _IDS}
    bind_contextvars(**{name: value for name, value in found.items() if _OURS.fullmatch(value)})


def configure_logging(*, level: str, style: Style, process: str = "api") -> None:
    """Send structlog's and the standard library's records to stderr, in one style.

    Args:
        level: the least severe level that is written, e.g. `info`.
        style: `text` for a terminal, `json` for a log collector.
        process: which process of the replica it is; told in JSON.
    """

    def add_process(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {"process": process, **event}

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if style == "json":
        shared.append(add_process)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=28,
            exception_formatter=structlog.dev.plain_traceback,  # the default one shows local variables
        )
        shared.remove(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = name != "uvicorn.access"
