"""The command groups `videos`, `sessions` and `models`; each command imports what it needs."""

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from service.terminal.options import (
    DEFAULT_SERVER,
    IdArgument,
    IdsArgument,
    JsonLinesOption,
    JsonOption,
    KeyOption,
    LimitOption,
    ServerOption,
)

if TYPE_CHECKING:
    from service.terminal.client import Client


def open_client(server: str, api_key: str | None) -> "Client":
    """A client of the service at `server` that prints a note before a long wait."""
    from service.terminal.client import Client
    from service.terminal.printing import print_note

    return Client(server, api_key=api_key, notify=print_note)


class _ListByDefault(TyperGroup):
    """A command group in which `list` is the default: `reeltalk videos` is `reeltalk videos list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `list` if no command is named, except for shell completion."""
        if not ctx.resilient_parsing and (not args or args[0].startswith("-")) and "--help" not in args:
            args = ["list", *args]
        return super().parse_args(ctx, args)


def record_commands(kind: str) -> typer.Typer:
    """Create the commands for one kind of record: list, show, delete."""
    group = typer.Typer(cls=_ListByDefault, help=f"List, show and delete {kind}.")

    @group.command("list")
    def list_newest(
        *,
        limit: LimitOption = 20,
        server: ServerOption = DEFAULT_SERVER,
        api_key: KeyOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """List records, newest first; the default command."""
        from service.terminal.listing import print_newest
        from service.terminal.printing import exit_on_failure

        with exit_on_failure(as_json=as_json), open_client(server, api_key) as client:
            print_newest(client, kind, limit=limit, as_json=as_json)

    @group.command()
    def show(
        record_id: IdArgument,
        *,
        server: ServerOption = DEFAULT_SERVER,
        api_key: KeyOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Show all fields of a record."""
        from service.terminal.chats import checked_id
        from service.terminal.listing import print_one
        from service.terminal.printing import exit_on_failure

        with exit_on_failure(as_json=as_json), open_client(server, api_key) as client:
            print_one(client, kind, checked_id(kind, record_id), as_json=as_json)

    @group.command()
    def delete(
        record_ids: IdsArgument,
        *,
        server: ServerOption = DEFAULT_SERVER,
        api_key: KeyOption = None,
        as_json: JsonLinesOption = False,
    ) -> None:
        """Delete records and all that belongs to them: with a video also its sessions."""
        from service.terminal.chats import checked_id
        from service.terminal.listing import delete_records
        from service.terminal.printing import exit_on_failure

        with exit_on_failure(as_json=as_json), open_client(server, api_key) as client:
            delete_records(client, kind, [checked_id(kind, record_id) for record_id in record_ids], as_json=as_json)

    return group


def model_commands() -> typer.Typer:
    """Create the commands for models."""
    group = typer.Typer(cls=_ListByDefault, help="List the models of a service, and those that can be served.")

    @group.command("list")
    def list_models(
        *,
        server: ServerOption = DEFAULT_SERVER,
        api_key: KeyOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """List the models that a service serves, and their states; the default command."""
        from service.terminal.models import print_models
        from service.terminal.printing import exit_on_failure

        with exit_on_failure(as_json=as_json), open_client(server, api_key) as client:
            print_models(client, as_json=as_json)

    @group.command()
    def known(*, as_json: JsonOption = False) -> None:
        """List the published models that can be converted and served, with their GPU memory; needs no service."""
        from service.commands.known import print_known  # imports torch, which takes seconds

        print_known(as_json=as_json)

    return group
