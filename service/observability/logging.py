"""Configures logging: one line for each event, as text or JSON. Events carry no secrets and no text of users."""

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
    """The ids of records that are bound to the log lines of the current context."""
    return {name: value for name, value in get_contextvars().items() if name in _IDS}


def bind_path_ids(path_params: Mapping[str, object]) -> None:
    """Bind the ids in the path of a request to its log lines; values that are not well-formed ids are left out."""
    found = {name: str(value) for name, value in path_params.items() if name in _IDS}
    bind_contextvars(**{name: value for name, value in found.items() if _OURS.fullmatch(value)})


def configure_logging(*, level: str, style: Style, process: str = "api") -> None:
    """Write the records of structlog and of the standard library to stderr, in one style.

    Args:
        level: the lowest level that is written, for example `info`.
        style: `text` for a terminal, `json` for a log collector.
        process: the name of this process within the replica; JSON lines contain it.
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
            exception_formatter=structlog.dev.plain_traceback,  # the default formatter shows local variables
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
