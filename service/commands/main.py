"""The command `reeltalk`: serve, demo, settings, and those that talk to a service, for keys and for checkpoints.

What a command needs is imported when it is run: `reeltalk --help` and `reeltalk ask` start without the service.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from service.commands.checkpoints import add_commands as add_checkpoint_commands
from service.commands.keys import check_door, keys_app
from service.terminal.commands import add_commands as add_terminal_commands
from service.workers.roles import Quantization

if TYPE_CHECKING:
    from service.settings import Settings

app = typer.Typer(
    name="reeltalk", no_args_is_help=True, pretty_exceptions_enable=False, help="Upload a video, then talk about it."
)
_T = TypeVar("_T")
_console = Console()
_errors = Console(stderr=True)

HostOption = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
PortOption = Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000")]
DataDirOption = Annotated[Path | None, typer.Option(help="Where uploads and Redis live.", show_default=".data")]
FamilyOption = Annotated[str | None, typer.Option(help="The model family.", show_default="videochat")]
CheckpointOption = Annotated[Path | None, typer.Option(help="A folder with its weights.", show_default="a small model")]
WorkersOption = Annotated[
    str | None, typer.Option(help="How many, or roles: encode,generate*2@cuda:0.", show_default="1")
]
QuantizeOption = Annotated[Quantization | None, typer.Option(help="Bits of the language model's weights.")]


def _print_version(is_asked: bool) -> None:  # noqa: FBT001  typer calls it so
    if is_asked:
        typer.echo(f"reeltalk {importlib.metadata.version('reeltalk')}")
        raise typer.Exit


@app.callback()
def reeltalk(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which Reeltalk this is.")
    ] = False,
) -> None:
    """Upload a video, then talk about it."""


@app.command(rich_help_panel="The service")
def serve(
    *,
    host: HostOption = None,
    port: PortOption = None,
    data_dir: DataDirOption = None,
    family: FamilyOption = None,
    checkpoint: CheckpointOption = None,
    quantize: QuantizeOption = None,
    workers: WorkersOption = None,
) -> None:
    """Run the service in the foreground; Ctrl-C stops it and everything it started."""
    from service.observability.logging import configure_logging
    from service.observability.tracing import configure_tracing
    from service.server import serve as run

    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        family=family,
        checkpoint=checkpoint,
        quantize=quantize,
        workers=workers,
    )
    configure_logging(level=settings.log_level, style=settings.log_format)
    configure_tracing()
    _give_up_on(lambda: check_door(settings))
    sys.exit(run(settings, console=_console))


@app.command(rich_help_panel="The service")
def demo() -> None:
    """Start a service, upload a bundled clip over HTTP, ask two questions, stop."""
    from service.commands.demo import run

    sys.exit(run(console=_console))


@app.command(rich_help_panel="The service")
def settings() -> None:
    """List every setting with its default; set them as environment variables."""
    from service.settings import PREFIX, Settings

    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else field.default
        _console.print(f"{PREFIX}{name.upper()}={default}", markup=False, highlight=False, soft_wrap=True)


app.add_typer(keys_app, name="keys", rich_help_panel="The service")
add_terminal_commands(app, panel="Talk to a service")
add_checkpoint_commands(app, panel="Checkpoints")


def _settings(**overrides: object) -> "Settings":
    from service.settings import load_settings

    return _give_up_on(lambda: load_settings(overrides))


def _give_up_on(step: Callable[[], _T]) -> _T:
    """Take a step towards serving, or end with a sentence that says why it cannot be taken."""
    from service.errors import Unavailable
    from service.settings import SettingsError
    from service.store.redis_server import RedisServerError

    try:
        return step()
    except (SettingsError, RedisServerError, Unavailable) as error:
        _errors.print(f"reeltalk: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


def main() -> None:
    """The entry point of the `reeltalk` command."""
    app(prog_name="reeltalk")


if __name__ == "__main__":
    main()
