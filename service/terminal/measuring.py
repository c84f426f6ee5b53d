"""The command `bench`: prepares a video and sessions, puts one load after the other on the service, cleans up."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from service.terminal import bench
from service.terminal.client import Client
from service.terminal.connection import Document
from service.terminal.failures import Exit, Failure
from service.terminal.printing import ShowProgress, progress, remark, say_json, say_table
from service.terminal.talks import prepare

_TITLES = ("streams", "answers", "failed", "tokens/s", "first token p50", "p99", "between p50", "p99", "per token")


def measure(
    client: Client,
    video: str,
    loads: Sequence[bench.Load],
    *,
    url: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Measure every load and print a row for each; a JSON document with `as_json`."""
    with progress() as show:
        video_id = str(prepare(client, video, show)["id"])
    model = str(_warm_up(client, video_id, loads[0])["model"])
    rows = []
    for load in loads:
        with _sessions(client, video_id, load.num_answers) as session_ids, progress() as show:
            on_answer = partial(_show_answer, show, load)
            rows.append(bench.run(url, api_key, session_ids, load, on_answer))
    if as_json:
        say_json({"object": "benchmark", "server": url, "model": model, "tokens": loads[0].num_tokens, "loads": rows})
    else:
        say_table(_TITLES, [_cells(row) for row in rows])
        remark(f"Model {model}, {loads[0].num_tokens} tokens an answer. Times in ms; between two pieces of text.")
    if not any(row["answers"] for row in rows):
        codes = ", ".join(sorted({code for row in rows for code in row["failed"]}))
        raise Failure(Exit.FAILED, f"No answer came to its end: {codes}.", code="nothing_measured")


def _warm_up(client: Client, video_id: str, load: bench.Load) -> Document:
    """One answer ahead, so that none of those measured pays for what the first one finds cold."""
    with _sessions(client, video_id, 1) as [session_id]:
        for event in client.ask(session_id, **{**load.message, "max_tokens": 8}):
            if event.name == "error":
                raise Failure.of_envelope(event.data)
        return client.get("sessions", session_id)


@contextlib.contextmanager
def _sessions(client: Client, video_id: str, count: int) -> Iterator[list[str]]:
    """Sessions on a video, erased behind the block."""
    opened: list[str] = []
    try:
        for _ in range(count):
            opened.append(str(client.open_session([video_id])["id"]))
        yield opened
    finally:
        for session_id in opened:
            with contextlib.suppress(Failure):
                client.delete("sessions", session_id)


def _show_answer(show: ShowProgress, load: bench.Load, num_done: int) -> None:
    show(f"{load.num_streams} at once", num_done / load.num_answers, 1)


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
