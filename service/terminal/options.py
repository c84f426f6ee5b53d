"""The arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_SERVER = "http://127.0.0.1:8000"

_LOCAL = "Without a service"
_FRAMES = "Frames"
_SAMPLING = "Sampling"

VideoArgument = Annotated[
    str,
    typer.Argument(help="A file, a video id (vid_…), or a URL for the service to fetch.", show_default=False),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="An id, as `list` shows it.")]
IdsArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, as `list` shows them.")]

ServerOption = Annotated[str, typer.Option("--server", envvar="REELTALK_URL", help="The address of the service.")]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="REELTALK_API_KEY",
        show_default=False,
        help="The API key, if the service requires one. Prefer the variable: other users can see command lines.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each.")]
LimitOption = Annotated[int, typer.Option(min=1, max=10_000, help="The maximum number of records.")]
SessionOption = Annotated[
    str | None, typer.Option(help="Continue this session (ses_…); VIDEO must be omitted.", show_default=False)
]

ModelOption = Annotated[
    str | None, typer.Option(help="The model of the new session, as `models` lists it.", show_default="the service's")
]

SystemOption = Annotated[
    str | None,
    typer.Option(
        help="The system prompt.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=8192,
        help="The maximum number of tokens of an answer.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        min=0, max=5, help="0 takes the most likely token.", show_default="the model's", rich_help_panel=_SAMPLING
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Sample from the most likely tokens up to this probability.",
        show_default="the model's",
        rich_help_panel=_SAMPLING,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Sample from this number of most likely tokens.",
        show_default="the model's",
        rich_help_panel=_SAMPLING,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="A seed makes the answer reproducible.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]

FramesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100,
        help="The number of frames.",
        show_default="the model's",
        rich_help_panel=_FRAMES,
    ),
]
StartOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Sample frames from this second on.",
        show_default=False,
        rich_help_panel=_FRAMES,
    ),
]
EndOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Sample frames up to this second.",
        show_default=False,
        rich_help_panel=_FRAMES,
    ),
]

LocalOption = Annotated[bool, typer.Option("--local", help="Run the model in this process.", rich_help_panel=_LOCAL)]
LocalFamilyOption = Annotated[
    str,
    typer.Option(
        help="With --local: the model family.",
        rich_help_panel=_LOCAL,
    ),
]
LocalCheckpointOption = Annotated[
    Path | None,
    typer.Option(
        help="With --local: a folder with the model's files.", show_default="a small model", rich_help_panel=_LOCAL
    ),
]
LocalDeviceOption = Annotated[str, typer.Option(help="With --local: auto, cpu or cuda:N.", rich_help_panel=_LOCAL)]
