"""The command-line interface of `ask`, `chat` and `bench`; each imports what it needs."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.terminal.failures import Exit, usage_error
from service.terminal.groups import model_commands, open_client, record_commands
from service.terminal.options import (
    DEFAULT_SERVER,
    EndOption,
    FramesOption,
    JsonOption,
    KeyOption,
    LocalCheckpointOption,
    LocalDeviceOption,
    LocalFamilyOption,
    LocalOption,
    MaxTokensOption,
    ModelOption,
    SeedOption,
    ServerOption,
    SessionOption,
    StartOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    VideoArgument,
)

if TYPE_CHECKING:
    from service.terminal.chats import Chat
    from service.terminal.client import Client

_STATUSES = "Exit status: 0 if the question was answered, " + ", ".join(
    f"{status.value} {meaning}"
    for status, meaning in (
        (Exit.FAILED, "if the service failed"),
        (Exit.USAGE, "wrong usage"),
        (Exit.UNREACHABLE, "service not reachable"),
        (Exit.REFUSED, "refused"),
        (Exit.NO_KEY, "API key missing or invalid"),
        (Exit.NOT_FOUND, "not found"),
        (Exit.NOT_NOW, "busy"),
        (Exit.INTERRUPTED, "Ctrl-C"),
    )
)
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def ask(
    video: VideoArgument,
    question: Annotated[
        str | None, typer.Argument(help="The question; - reads it from stdin.", show_default=False)
    ] = None,
    *,
    session: SessionOption = None,
    model: ModelOption = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
    as_events: Annotated[bool, typer.Option("--events", help="Print the answer's events, a JSON line each.")] = False,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = None,
    frames: FramesOption = None,
    start: StartOption = None,
    end: EndOption = None,
    local: LocalOption = False,
    family: LocalFamilyOption = "videochat",
    checkpoint: LocalCheckpointOption = None,
    device: LocalDeviceOption = "auto",
) -> None:
    """Ask a question about a video and print the answer while it is generated.

    With the --model of a text model give only the QUESTION.
    """
    from service.terminal.asking import answer_once, question_of
    from service.terminal.printing import exit_on_failure

    with exit_on_failure(as_json=as_json or as_events):
        needs_video = model is None and not local
        named_video, named_question = _video_and_question(video, question, session, needs_video=needs_video)
        text = question_of(named_question)
        fields = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        opening = _given(model=model, system=system, frames=_given(count=frames, start=start, end=end) or None)
        if local:
            conversation = _local_chat(
                named_video, session, opening, fields, family=family, checkpoint=checkpoint, device=device
            )
            answer_once(conversation, text, as_json=as_json, as_events=as_events)
            return
        with open_client(server, api_key) as client:
            conversation = _service_chat(client, named_video, session, opening, fields)
            answer_once(conversation, text, as_json=as_json, as_events=as_events)


ask.__doc__ = f"{ask.__doc__}\n\n{_STATUSES}."


def chat(
    video: Annotated[str | None, typer.Argument(help="As for `ask`.", show_default=False)] = None,
    *,
    session: SessionOption = None,
    model: ModelOption = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as a line of JSON.")] = False,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = None,
    frames: FramesOption = None,
    start: StartOption = None,
    end: EndOption = None,
    local: LocalOption = False,
    family: LocalFamilyOption = "videochat",
    checkpoint: LocalCheckpointOption = None,
    device: LocalDeviceOption = "auto",
) -> None:
    """Chat about a video, one question on each line. Ctrl-C stops an answer, Ctrl-D exits.

    With the --model of a text model the chat has no VIDEO.
    """
    from service.terminal.asking import print_history, run_chat
    from service.terminal.printing import exit_on_failure

    with exit_on_failure(as_json=as_json):
        needs_video = session is None and model is None and not local
        if (video is None and needs_video) or (video is not None and session is not None):
            raise usage_error("Name either a VIDEO for a new session or an existing --session.")
        fields = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        opening = _given(model=model, system=system, frames=_given(count=frames, start=start, end=end) or None)
        if local:
            conversation = _local_chat(
                video, session, opening, fields, family=family, checkpoint=checkpoint, device=device
            )
            run_chat(conversation, as_json=as_json)
            return
        with open_client(server, api_key) as client:
            conversation = _service_chat(client, video, session, opening, fields)
            if session is not None:
                print_history(client.messages(session))
            run_chat(conversation, as_json=as_json)


def bench(
    video: Annotated[
        str | None, typer.Argument(help="As for `ask`.", show_default="a bundled clip of four seconds")
    ] = None,
    *,
    streams: Annotated[
        str, typer.Option(help="Numbers of concurrent answers, separated by commas; one load for each.")
    ] = "1,4,16",
    answers: Annotated[int, typer.Option(min=1, max=1000, help="Answers of each stream.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=2, max=8192, help="Tokens of each answer.")] = 64,
    question: Annotated[str, typer.Option(help="The question.")] = "What happens in the video?",
    model: ModelOption = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a load on a service and measure its latency and throughput.

    Every answer has its own session on one video, temperature 0, and exactly --max-tokens tokens. The sessions are
    deleted afterwards.
    """
    from service.commands.demo import SAMPLE
    from service.terminal.bench import run_bench
    from service.terminal.load import Load
    from service.terminal.models import check_model
    from service.terminal.printing import exit_on_failure

    with exit_on_failure(as_json=as_json), open_client(server, api_key) as client:
        loads = [
            Load(num_streams=number, num_answers=number * answers, num_tokens=max_tokens, question=question)
            for number in _numbers(streams)
        ]
        if model is not None:
            check_model(client, model, has_video=True)
        url = server.rstrip("/")
        run_bench(client, video or str(SAMPLE), loads, model=model, url=url, api_key=api_key, as_json=as_json)


def add_client_commands(app: typer.Typer, *, panel: str) -> None:
    """Add these commands to `app`, under the heading `panel` of its help."""
    for command in (ask, chat):
        app.command(rich_help_panel=panel)(command)
    app.add_typer(record_commands("videos"), name="videos", rich_help_panel=panel)
    app.add_typer(record_commands("sessions"), name="sessions", rich_help_panel=panel)
    app.add_typer(model_commands(), name="models", rich_help_panel=panel)
    app.command(rich_help_panel=panel)(bench)


def _video_and_question(
    first: str, second: str | None, session: str | None, *, needs_video: bool
) -> tuple[str | None, str]:
    """Interpret the arguments of `ask`: a video and a question, or with --session or a text model only a question."""
    if session is not None:
        if second is not None:
            raise usage_error("With --session give only the question, because a session has its video.")
        return None, first
    if second is None:
        if not needs_video:
            return None, first
        raise usage_error("Give a VIDEO and a QUESTION, or a QUESTION and a --session or the --model of a text model.")
    return first, second


def _service_chat(
    client: "Client", video: str | None, session: str | None, opening: dict[str, Any], fields: dict[str, Any]
) -> "Chat":
    from service.terminal.chats import ServiceChat, checked_id, prepare
    from service.terminal.models import check_model
    from service.terminal.printing import progress_bars

    if session is not None:
        if opening:
            options = "--model, --frames, --start, --end and --system"
            raise usage_error(f"{options} cannot be changed in an existing --session.")
        return ServiceChat(client, str(client.get("sessions", checked_id("sessions", session))["id"]), fields)
    if "model" in opening:
        check_model(client, opening["model"], has_video=video is not None)
    video_ids = []
    if video is not None:
        with progress_bars() as show:
            video_ids = [str(prepare(client, video, show)["id"])]
    return ServiceChat(client, str(client.open_session(video_ids, **opening)["id"]), fields)


def _local_chat(
    video: str | None,
    session: str | None,
    opening: dict[str, Any],
    fields: dict[str, Any],
    *,
    family: str,
    checkpoint: Any,
    device: str,
) -> "Chat":
    from service.terminal.chats import file_of
    from service.terminal.printing import progress_bars

    if "model" in opening:
        raise usage_error("--model cannot be combined with --local; name the model by --family and --checkpoint.")
    if session is not None:
        raise usage_error("--session cannot be combined with --local, because sessions belong to a service.")
    if not _DEVICE.fullmatch(device):
        raise usage_error(f"{device} is not a device. A device is auto, cpu, cuda or cuda:N.")
    path = None if video is None else file_of(video)
    with progress_bars() as show:
        show("load")
        from service.terminal.local import LocalChat  # imports torch, which takes seconds

        frames = opening.pop("frames", {})
        return LocalChat(
            path, family=family, checkpoint=checkpoint, device=device, frames=frames, fields=opening | fields, show=show
        )


def _numbers(text: str) -> list[int]:
    """Parse positive numbers separated by commas."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 4096 for word in words):
        raise usage_error(f"--streams must be numbers separated by commas, for example 1,4,16, not {text!r}.")
    return [int(word) for word in words]


def _given(**fields: object) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
