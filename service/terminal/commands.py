"""The commands `ask`, `chat`, `videos`, `sessions` and `completion`, as they are typed."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # there, if not exported

from service.terminal.failures import misused

if TYPE_CHECKING:
    from service.terminal.client import Client
    from service.terminal.talks import Talk

_PROGRAM = "reeltalk"

VideoArgument = Annotated[str, typer.Argument(help="A file, an id (vid_…), or a URL that the service may fetch.")]
UrlOption = Annotated[str, typer.Option(envvar="REELTALK_URL", help="Where the service is.")]
KeyOption = Annotated[
    str | None,
    typer.Option(envvar="REELTALK_API_KEY", show_default=False, help="If it asks for one. Better as the variable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
SystemOption = Annotated[str, typer.Option(help="A text before the conversation.", show_default=False)]
FramesOption = Annotated[int | None, typer.Option(min=1, help="How many frames to look at.")]
StartOption = Annotated[float | None, typer.Option(min=0, help="From this second of the video on.")]
EndOption = Annotated[float | None, typer.Option(min=0, help="Up to this second.")]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="The answer's greatest length.")]
TemperatureOption = Annotated[float | None, typer.Option(min=0, max=5, help="0 always says the likeliest.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="The same seed, the same answer.")]
LocalOption = Annotated[bool, typer.Option("--local", help="Run the model here, without a service.")]
FamilyOption = Annotated[str, typer.Option(help="With --local: the model family.")]
CheckpointOption = Annotated[Path | None, typer.Option(help="With --local: a folder with weights.")]
DeviceOption = Annotated[str, typer.Option(help="With --local: cpu, cuda, cuda:1 …")]
LimitOption = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]
IdArgument = Annotated[str, typer.Argument(help="As `list` shows it.")]
IdsArgument = Annotated[list[str], typer.Argument(help="As `list` shows them.")]

_HERE = "http://127.0.0.1:8000"


class Shell(StrEnum):
    """The shells that commands can be completed in."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def ask(
    video: VideoArgument,
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.")],
    *,
    url: UrlOption = _HERE,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
    as_events: Annotated[bool, typer.Option("--events", help="Print the answer's events, a JSON line each.")] = False,
    system: SystemOption = "",
    frames: FramesOption = None,
    start: StartOption = None,
    end: EndOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    local: LocalOption = False,
    family: FamilyOption = "videochat",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Ask a question about a video and print the answer as it comes."""
    from service.terminal.asking import answer_once, question_of
    from service.terminal.printing import failures_told

    with failures_told(as_json=as_json or as_events):
        text = question_of(question)
        if not text.strip():
            raise misused("The question is empty.")
        fields = _given(system=system or None, max_tokens=max_tokens, temperature=temperature, seed=seed)
        if local:
            _check_local(frames, start, end)
            talk = _local_talk(video, family=family, checkpoint=checkpoint, device=device, fields=fields)
            answer_once(talk, text, as_json=as_json, as_events=as_events)
            return
        with _client(url, api_key) as client:
            chosen = _given(count=frames, start=start, end=end)
            talk = _session_talk(client, video, session=None, frames=chosen, fields=fields)
            answer_once(talk, text, as_json=as_json, as_events=as_events)


def chat(
    video: Annotated[str | None, typer.Argument(help="As for `ask`; not with --session.")] = None,
    *,
    session: Annotated[str | None, typer.Option(help="Go on with this session (ses_…).")] = None,
    url: UrlOption = _HERE,
    api_key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as one line of JSON.")] = False,
    system: SystemOption = "",
    frames: FramesOption = None,
    start: StartOption = None,
    end: EndOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    local: LocalOption = False,
    family: FamilyOption = "videochat",
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Talk about a video; a question a line."""
    from service.terminal.asking import chat as converse
    from service.terminal.printing import failures_told

    with failures_told(as_json=as_json):
        if (video is None) == (session is None):
            raise misused("Name a VIDEO to begin with, or a --session to go on with; one of the two.")
        fields = _given(system=system or None, max_tokens=max_tokens, temperature=temperature, seed=seed)
        if local:
            _check_local(frames, start, end, session)
            talk = _local_talk(str(video), family=family, checkpoint=checkpoint, device=device, fields=fields)
            converse(talk, as_json=as_json)
            return
        with _client(url, api_key) as client:
            chosen = _given(count=frames, start=start, end=end)
            converse(_session_talk(client, video, session=session, frames=chosen, fields=fields), as_json=as_json)


def completion(shell: Annotated[Shell, typer.Argument(help="The shell to complete commands in.")]) -> None:
    """Print a script that has a shell complete these commands: eval "$(reeltalk completion bash)"."""
    variable = f"_{_PROGRAM}_COMPLETE".upper()
    typer.echo(get_completion_script(prog_name=_PROGRAM, complete_var=variable, shell=shell.value))


def add_commands(app: typer.Typer) -> None:
    """Give `app` these commands."""
    for command in (ask, chat, completion):
        app.command()(command)
    app.add_typer(_records("videos", "The uploaded videos."), name="videos")
    app.add_typer(_records("sessions", "The conversations."), name="sessions")


def _records(kind: str, about: str) -> typer.Typer:
    """The commands for one kind of record: list, show, delete."""
    group = typer.Typer(no_args_is_help=True, help=f"{about} List them, show one, delete some.")

    @group.command("list")
    def list_newest(
        *, limit: LimitOption = 20, url: UrlOption = _HERE, api_key: KeyOption = None, as_json: JsonOption = False
    ) -> None:
        """The newest first."""
        from service.terminal.printing import failures_told
        from service.terminal.records import print_newest

        with failures_told(as_json=as_json), _client(url, api_key) as client:
            print_newest(client, kind, limit=limit, as_json=as_json)

    @group.command()
    def show(
        record_id: IdArgument, *, url: UrlOption = _HERE, api_key: KeyOption = None, as_json: JsonOption = False
    ) -> None:
        """All about one."""
        from service.terminal.printing import failures_told
        from service.terminal.records import print_one

        with failures_told(as_json=as_json), _client(url, api_key) as client:
            print_one(client, kind, _id(kind, record_id), as_json=as_json)

    @group.command()
    def delete(
        record_ids: IdsArgument,
        *,
        url: UrlOption = _HERE,
        api_key: KeyOption = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each.")] = False,
    ) -> None:
        """Erase them, with all that belongs to them; a video's sessions too."""
        from service.terminal.printing import failures_told
        from service.terminal.records import erase

        with failures_told(as_json=as_json), _client(url, api_key) as client:
            erase(client, kind, [_id(kind, record_id) for record_id in record_ids], as_json=as_json)

    return group


def _client(url: str, api_key: str | None) -> "Client":
    from service.terminal.client import Client

    return Client(url, api_key=api_key)


def _session_talk(
    client: "Client", video: str | None, *, session: str | None, frames: dict[str, Any], fields: dict[str, Any]
) -> "Talk":
    from service.terminal.asking import print_history
    from service.terminal.printing import progress
    from service.terminal.talks import ServiceTalk

    if session is not None:
        if frames or "system" in fields:
            raise misused("--frames, --start, --end and --system are chosen when a session begins.")
        talk = ServiceTalk.resume(client, _id("sessions", session), fields)
        print_history(talk.history())
        return talk
    with progress() as show:
        return ServiceTalk.begin(client, str(video), frames=frames, fields=fields, show=show)


def _local_talk(video: str, *, family: str, checkpoint: Path | None, device: str, fields: dict[str, Any]) -> "Talk":
    from service.terminal.local import LocalTalk
    from service.terminal.printing import progress
    from service.terminal.talks import file_of

    path = file_of(video)
    with progress() as show:
        return LocalTalk(path, family=family, checkpoint=checkpoint, device=device, fields=fields, show=show)


def _check_local(*only_with_a_service: object) -> None:
    if any(option is not None for option in only_with_a_service):
        raise misused("--session, --frames, --start and --end need a service; they do not go with --local.")


def _id(kind: str, text: str) -> str:
    """An id that can stand in a path."""
    prefix = {"videos": "vid", "sessions": "ses"}[kind]
    if not re.fullmatch(rf"{prefix}_[0-9a-f]{{32}}", text):
        raise misused(f"{text} is no id; one looks like {prefix}_ and 32 digits from 0 to f.")
    return text


def _given(**fields: object) -> dict[str, Any]:
    """The fields that somebody chose."""
    return {name: value for name, value in fields.items() if value is not None}
