"""The command line `reeltalk`: serve, demo, settings, keys, and the commands for clients and for checkpoints.

Each command imports what it needs when it runs, so that `reeltalk --help` and `reeltalk ask` start quickly.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from model.weight_bits import Quantization
from service.commands.checkpoints import add_checkpoint_commands
from service.commands.keys import check_exposure, keys_app
from service.terminal.commands import add_client_commands

if TYPE_CHECKING:
    from service.settings import Settings

app = typer.Typer(
    name="reeltalk", no_args_is_help=True, pretty_exceptions_enable=False, help="Upload a video, then talk about it."
)
_T = TypeVar("_T")
_console = Console()
_errors = Console(stderr=True)

HostOption = Annotated[str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")]
PortOption = Annotated[int | None, typer.Option(help="The port; 0 takes a free one.", show_default="8000")]
DataDirOption = Annotated[Path | None, typer.Option(help="The directory for uploads and Redis.", show_default=".data")]
FamilyOption = Annotated[str | None, typer.Option(help="The model family.", show_default="videochat")]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="A folder with the model's files.", show_default="a small model")
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=FAMILY:CHECKPOINT of a model to serve; may be repeated.", show_default="one small model"),
]
ModelsOption = Annotated[Path | None, typer.Option(help="A TOML file with the models to serve.")]
WorkersOption = Annotated[
    str | None,
    typer.Option(help="The number of workers, or their roles: encode,generate*2@cuda:0.", show_default="1"),
]
QuantizeOption = Annotated[Quantization | None, typer.Option(help="Quantize the language model's weights.")]


def _print_version(is_requested: bool) -> None:  # noqa: FBT001  the signature that typer requires
    if is_requested:
        typer.echo(f"reeltalk {importlib.metadata.version('reeltalk')}")
        raise typer.Exit


@app.callback()
def reeltalk(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Upload a video, then talk about it."""


@app.command(rich_help_panel="The service")
def serve(
    *,
    host: HostOption = None,
    port: PortOption = None,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
    models: ModelsOption = None,
    family: FamilyOption = None,
    checkpoint: CheckpointOption = None,
    quantize: QuantizeOption = None,
    workers: WorkersOption = None,
) -> None:
    """Run the service in the foreground; Ctrl-C stops it and all its processes."""
    from service.observability.logging import configure_logging
    from service.observability.tracing import configure_tracing
    from service.server import serve as run
    from service.settings import check_default_checkpoint

    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        model=model or None,
        models=models,
        family=family,
        checkpoint=checkpoint,
        quantize=quantize,
        workers=workers,
    )
    configure_logging(level=settings.log_level, style=settings.log_format)
    configure_tracing()
    _or_exit(lambda: check_default_checkpoint(settings))
    _or_exit(lambda: check_exposure(settings))
    sys.exit(run(settings, console=_console))


@app.command(rich_help_panel="The service")
def demo() -> None:
    """Start a service, upload a bundled clip over HTTP, ask three questions, and stop."""
    from service.commands.demo import run

    sys.exit(run(console=_console))


@app.command(rich_help_panel="The service")
def settings() -> None:
    """List every setting with its description and default, as a file of environment variables."""
    from service.settings import PREFIX, Settings

    for name, field in Settings.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        description = "\n".join(f"# {line}" for line in (field.description or "").splitlines())
        text = f"{description}\n{PREFIX}{name.upper()}={'' if default is None else default}\n"
        _console.print(text, markup=False, highlight=False, soft_wrap=True)


app.add_typer(keys_app, name="keys", rich_help_panel="The service")
add_client_commands(app, panel="Clients of a service")
add_checkpoint_commands(app, panel="Checkpoints")


def _settings(**overrides: object) -> "Settings":
    from service.settings import load_settings

    return _or_exit(lambda: load_settings(overrides))


def _or_exit(step: Callable[[], _T]) -> _T:
    """Run a step of the start-up; if it fails, print why in one sentence and exit with status 2."""
    from service.errors import Unavailable
    from service.settings import SettingsError
    from service.store.redis_server import RedisServerError

    try:
        return step()
    except (SettingsError, RedisServerError, Unavailable) as error:
        _errors.print(f"reeltalk: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


def main() -> None:
    """Run the `reeltalk` command; the entry point of the package."""
    app(prog_name="reeltalk")


if __name__ == "__main__":
    main()
