"""The commands `ask`, `chat`, `videos`, `sessions` and `bench`, as they are typed; each imports what it needs."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from service.terminal.failures import Exit, misused
from service.terminal.options import (
    HERE,
    CheckpointOption,
    DeviceOption,
    EndOption,
    FamilyOption,
    FramesOption,
    IdArgument,
    IdsArgument,
    JsonLinesOption,
    JsonOption,
    KeyOption,
    LimitOption,
    LocalOption,
    MaxTokensOption,
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
    from service.terminal.client import Client
    from service.terminal.talks import Talk

_STATUSES = "Exit status: 0 if it was answered, " + ", ".join(
    f"{status.value} {meaning}"
    for status, meaning in (
        (Exit.FAILED, "if the service failed"),
        (Exit.USAGE, "wrong usage"),
        (Exit.UNREACHABLE, "no service"),
        (Exit.REFUSED, "refused"),
        (Exit.NO_KEY, "API key"),
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
    server: ServerOption = HERE,
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
    family: FamilyOption = "videochat",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Ask a question about a video and print the answer as it comes."""
    from service.terminal.asking import answer_once, question_of
    from service.terminal.printing import failures_told

    with failures_told(as_json=as_json or as_events):
        told_video, told_question = _video_and_question(video, question, session)
        text = question_of(told_question)
        fields = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        opening = _given(system=system, frames=_given(count=frames, start=start, end=end) or None)
        if local:
            talk = _local_talk(told_video, opening, fields, family=family, checkpoint=checkpoint, device=device)
            answer_once(talk, text, as_json=as_json, as_events=as_events)
            return
        with _client(server, api_key) as client:
            talk = _service_talk(client, told_video, session, opening, fields)
            answer_once(talk, text, as_json=as_json, as_events=as_events)


ask.__doc__ = f"{ask.__doc__}\n\n{_STATUSES}."


def chat(
    video: Annotated[str | None, typer.Argument(help="As for `ask`.", show_default=False)] = None,
    *,
    session: SessionOption = None,
    server: ServerOption = HERE,
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
    family: FamilyOption = "videochat",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Talk about a video, a question a line. Ctrl-C stops an answer, Ctrl-D ends."""
    from service.terminal.asking import chat as converse
    from service.terminal.asking import print_history
    from service.terminal.printing import failures_told

    with failures_told(as_json=as_json):
        if (video is None) == (session is None):
            raise misused("Name a VIDEO to begin with, or a --session to go on with; one of the two.")
        fields = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        opening = _given(system=system, frames=_given(count=frames, start=start, end=end) or None)
        if local:
            talk = _local_talk(video, opening, fields, family=family, checkpoint=checkpoint, device=device)
            converse(talk, as_json=as_json)
            return
        with _client(server, api_key) as client:
            talk = _service_talk(client, video, session, opening, fields)
            if session is not None:
                print_history(client.messages(session))
            converse(talk, as_json=as_json)


def bench(
    video: Annotated[
        str | None, typer.Argument(help="As for `ask`.", show_default="a clip of four seconds that comes along")
    ] = None,
    *,
    streams: Annotated[str, typer.Option(help="How many answers at once, by commas: one load after the other.")] = (
        "1,4,16"
    ),
    answers: Annotated[int, typer.Option(min=1, max=1000, help="Answers of each stream.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=2, max=8192, help="Tokens of each answer.")] = 64,
    question: Annotated[str, typer.Option(help="What is asked.")] = "What happens in the video?",
    server: ServerOption = HERE,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a load on a service and say how long its users wait.

    Every answer has a session of its own on one video, temperature 0, and goes on to exactly --max-tokens. The sessions
    are erased afterwards.
    """
    from service.commands.demo import SAMPLE
    from service.terminal.bench import Load
    from service.terminal.measuring import measure
    from service.terminal.printing import failures_told

    with failures_told(as_json=as_json), _client(server, api_key) as client:
        loads = [
            Load(num_streams=number, num_answers=number * answers, num_tokens=max_tokens, question=question)
            for number in _numbers(streams)
        ]
        measure(client, video or str(SAMPLE), loads, url=server.rstrip("/"), api_key=api_key, as_json=as_json)


def add_commands(app: typer.Typer, *, panel: str) -> None:
    """Give `app` these commands, under the heading `panel` of its help."""
    for command in (ask, chat):
        app.command(rich_help_panel=panel)(command)
    app.add_typer(_records("videos", "The uploaded videos"), name="videos", rich_help_panel=panel)
    app.add_typer(_records("sessions", "The conversations"), name="sessions", rich_help_panel=panel)
    app.command(rich_help_panel=panel)(bench)


class _ListByDefault(TyperGroup):
    """`reeltalk videos` is `reeltalk videos list`, options and all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add what was left out, unless a shell only asks how the line could go on."""
        if not ctx.resilient_parsing and (not args or args[0].startswith("-")) and "--help" not in args:
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _records(kind: str, about: str) -> typer.Typer:
    """The commands for one kind of record: list, show, delete."""
    group = typer.Typer(cls=_ListByDefault, help=f"{about}: list them, show one, delete some.")

    @group.command("list")
    def list_newest(
        *, limit: LimitOption = 20, server: ServerOption = HERE, api_key: KeyOption = None, as_json: JsonOption = False
    ) -> None:
        """The newest first; this is done where no command is named."""
        from service.terminal.printing import failures_told
        from service.terminal.records import print_newest

        with failures_told(as_json=as_json), _client(server, api_key) as client:
            print_newest(client, kind, limit=limit, as_json=as_json)

    @group.command()
    def show(
        record_id: IdArgument, *, server: ServerOption = HERE, api_key: KeyOption = None, as_json: JsonOption = False
    ) -> None:
        """All about one."""
        from service.terminal.printing import failures_told
        from service.terminal.records import print_one
        from service.terminal.talks import checked_id

        with failures_told(as_json=as_json), _client(server, api_key) as client:
            print_one(client, kind, checked_id(kind, record_id), as_json=as_json)

    @group.command()
    def delete(
        record_ids: IdsArgument,
        *,
        server: ServerOption = HERE,
        api_key: KeyOption = None,
        as_json: JsonLinesOption = False,
    ) -> None:
        """Erase them, with all that belongs to them; a video's sessions too."""
        from service.terminal.printing import failures_told
        from service.terminal.records import erase
        from service.terminal.talks import checked_id

        with failures_told(as_json=as_json), _client(server, api_key) as client:
            erase(client, kind, [checked_id(kind, record_id) for record_id in record_ids], as_json=as_json)

    return group


def _video_and_question(first: str, second: str | None, session: str | None) -> tuple[str | None, str]:
    """What the one or two words of `ask` are: a video and a question, or in a session the question alone."""
    if session is not None:
        if second is not None:
            raise misused("A session has its video; with --session give the question alone.")
        return None, first
    if second is None:
        raise misused("Give a VIDEO and a QUESTION, or a --session and a QUESTION.")
    return first, second


def _client(server: str, api_key: str | None) -> "Client":
    from service.terminal.client import Client
    from service.terminal.printing import remark

    return Client(server, api_key=api_key, tell=remark)


def _service_talk(
    client: "Client", video: str | None, session: str | None, opening: dict[str, Any], fields: dict[str, Any]
) -> "Talk":
    from service.terminal.printing import progress
    from service.terminal.talks import ServiceTalk, checked_id, prepare

    if session is not None:
        if opening:
            raise misused("--frames, --start, --end and --system are chosen when a session begins.")
        return ServiceTalk(client, str(client.get("sessions", checked_id("sessions", session))["id"]), fields)
    with progress() as show:
        video_id = str(prepare(client, str(video), show)["id"])
    return ServiceTalk(client, str(client.open_session([video_id], **opening)["id"]), fields)


def _local_talk(
    video: str | None, opening: dict[str, Any], fields: dict[str, Any], *, family: str, checkpoint: Any, device: str
) -> "Talk":
    from service.terminal.printing import progress
    from service.terminal.talks import file_of

    if video is None:
        raise misused("A --session is kept by a service; it does not go with --local.")
    if not _DEVICE.fullmatch(device):
        raise misused(f"{device} is no device; there are auto, cpu, cuda, and cuda:1 and so on.")
    path = file_of(video)
    with progress() as show:
        show("load")
        from service.terminal.local import LocalTalk  # takes seconds: it imports torch

        frames = opening.pop("frames", {})
        return LocalTalk(
            path, family=family, checkpoint=checkpoint, device=device, frames=frames, fields=opening | fields, show=show
        )


def _numbers(text: str) -> list[int]:
    """Positive numbers by commas."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 4096 for word in words):
        raise misused(f"--streams takes numbers by commas, as 1,4,16; not {text!r}.")
    return [int(word) for word in words]


def _given(**fields: object) -> dict[str, Any]:
    """The fields that somebody chose."""
    return {name: value for name, value in fields.items() if value is not None}
