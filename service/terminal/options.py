"""The arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

HERE = "http://127.0.0.1:8000"

_LOCAL = "Without a service"
_FRAMES = "Which frames"
_SAMPLING = "How it answers"

VideoArgument = Annotated[
    str, typer.Argument(help="A file, an id (vid_…), or a URL that the service may fetch.", show_default=False)
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]
IdsArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="As `list` shows them.")]

ServerOption = Annotated[str, typer.Option("--server", envvar="REELTALK_URL", help="Where the service is.")]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="REELTALK_API_KEY",
        show_default=False,
        help="If the service asks for one. On a command line others may read it; better set the variable.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print a line of JSON for each.")]
LimitOption = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]
SessionOption = Annotated[
    str | None, typer.Option(help="Go on with this session (ses_…), and leave VIDEO out.", show_default=False)
]

SystemOption = Annotated[
    str | None, typer.Option(help="A text before the conversation.", show_default=False, rich_help_panel=_SAMPLING)
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(min=1, max=8192, help="The most tokens of an answer.", show_default=False, rich_help_panel=_SAMPLING),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(min=0, max=5, help="0 says the likeliest.", show_default="the model's", rich_help_panel=_SAMPLING),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Only the likeliest of this sum.", show_default="the model's", rich_help_panel=_SAMPLING
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(min=0, help="Only so many of the likeliest.", show_default="the model's", rich_help_panel=_SAMPLING),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="The same seed, the same answer.", show_default=False, rich_help_panel=_SAMPLING),
]

FramesOption = Annotated[
    int | None,
    typer.Option(min=1, max=100, help="How many to look at.", show_default="the model's", rich_help_panel=_FRAMES),
]
StartOption = Annotated[
    float | None, typer.Option(min=0, help="From this second on.", show_default=False, rich_help_panel=_FRAMES)
]
EndOption = Annotated[
    float | None, typer.Option(min=0, help="Up to this second.", show_default=False, rich_help_panel=_FRAMES)
]

LocalOption = Annotated[bool, typer.Option("--local", help="Run the model in this process.", rich_help_panel=_LOCAL)]
FamilyOption = Annotated[str, typer.Option(help="With --local: the model family.", rich_help_panel=_LOCAL)]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(help="With --local: a folder with weights.", show_default="a small model", rich_help_panel=_LOCAL),
]
DeviceOption = Annotated[str, typer.Option(help="With --local: auto, cpu, cuda, cuda:1 …", rich_help_panel=_LOCAL)]
