"""Runs `reeltalk bench`: prepares a video and sessions, runs one load after another, and deletes the sessions."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from service.terminal import load
from service.terminal.chats import prepare
from service.terminal.client import Client
from service.terminal.connection import Document
from service.terminal.failures import Exit, Failure
from service.terminal.printing import ShowProgress, print_json, print_note, print_table, progress_bars

_TITLES = ("streams", "answers", "failed", "tokens/s", "first token p50", "p99", "between p50", "p99", "per token")


def run_bench(
    client: Client,
    video: str,
    loads: Sequence[load.Load],
    *,
    model: str | None,
    url: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Run every load and print a table with a row for each; with `as_json` print one JSON document.

    `model` is the model of the sessions; None is the service's default.
    """
    opening = {} if model is None else {"model": model}
    with progress_bars() as show:
        video_id = str(prepare(client, video, show)["id"])
    answered_by = str(_warm_up(client, video_id, opening, loads[0])["model"])
    rows = []
    for each in loads:
        with _sessions(client, video_id, opening, each.num_answers) as session_ids, progress_bars() as show:
            on_answer = partial(_show_answer, show, each)
            rows.append(load.run(url, api_key, session_ids, each, on_answer))
    if as_json:
        print_json(
            {"object": "benchmark", "server": url, "model": answered_by, "tokens": loads[0].num_tokens, "loads": rows}
        )
    else:
        print_table(_TITLES, [_cells(row) for row in rows])
        print_note(f"Model {answered_by}, {loads[0].num_tokens} tokens an answer. Times in ms, `between` deltas.")
    if not any(row["answers"] for row in rows):
        codes = ", ".join(sorted({code for row in rows for code in row["failed"]}))
        raise Failure(Exit.FAILED, f"No answer completed: {codes}.", code="nothing_measured")


def _warm_up(client: Client, video_id: str, opening: Document, first: load.Load) -> Document:
    """Generate one answer that is not measured, so that caches are warm; returns its session."""
    with _sessions(client, video_id, opening, 1) as [session_id]:
        for event in client.ask(session_id, **{**first.message, "max_tokens": 8}):
            if event.name == "error":
                raise Failure.from_envelope(event.data)
        return client.get("sessions", session_id)


@contextlib.contextmanager
def _sessions(client: Client, video_id: str, opening: Document, count: int) -> Iterator[list[str]]:
    """Create sessions on a video and delete them after the block."""
    opened: list[str] = []
    try:
        for _ in range(count):
            opened.append(str(client.open_session([video_id], **opening)["id"]))
        yield opened
    finally:
        for session_id in opened:
            with contextlib.suppress(Failure):
                client.delete("sessions", session_id)


def _show_answer(show: ShowProgress, running: load.Load, num_done: int) -> None:
    show(f"{running.num_streams} at once", num_done / running.num_answers, 1)


def _cells(row: Document) -> tuple[str, ...]:
    first, between, token = (
        row[name] for name in ("time_to_first_token_ms", "inter_token_latency_ms", "time_per_output_token_ms")
    )
    times = (first["p50"], first["p99"], between["p50"], between["p99"], token["mean"])
    return (
        str(row["streams"]),
        str(row["answers"]),
        " ".join(f"{count} {code}" for code, count in row["failed"].items()) or "0",
        f"{row['tokens_per_second']:.0f}",
        *("" if time is None else f"{time:.1f}" for time in times),
    )
