"""`reeltalk keys`: add, list and revoke API keys, also while the service runs."""

import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Never, TypeVar

import typer
from rich.console import Console

from service.access.scopes import LOCAL, MAX_PRIORITY, TENANT_NAME, Scope

if TYPE_CHECKING:
    from service.settings import Settings
    from service.store.api_keys import ApiKeyRecord, ApiKeyStore

keys_app = typer.Typer(no_args_is_help=True, help="Manage the API keys of the service.")

_T = TypeVar("_T")
_console = Console()
_errors = Console(stderr=True)
_DAY = 24 * 3600
_LINE = "{:<36}  {:<12}  {:<8}  {:<10}  {:<10}  {:<7}  {}"

DataDirOption = Annotated[Path | None, typer.Option(help="The service's data directory.", show_default=".data")]
PositiveOption = Annotated[int | None, typer.Option(min=1, show_default="the server's limit")]


@keys_app.command()
def add(
    name: Annotated[str, typer.Argument(help="A name by which you recognise the key.")],
    *,
    tenant: Annotated[str, typer.Option(help="The tenant whose videos, sessions and answers it can use.")] = LOCAL,
    scope: Annotated[list[Scope] | None, typer.Option(help="What the key allows.", show_default="use")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires.", show_default="never")] = None,
    requests_per_minute: PositiveOption = None,
    concurrent_answers: PositiveOption = None,
    stored_bytes: PositiveOption = None,
    max_priority: Annotated[
        int | None, typer.Option(min=-MAX_PRIORITY, max=MAX_PRIORITY, show_default="the server's limit")
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Create a key and print it. It cannot be shown again, because the service stores only its hash."""
    from service.access.key_format import new_key

    if not TENANT_NAME.fullmatch(tenant):
        _exit_with("The name of a tenant has at most 63 characters: a-z, 0-9, `-` and `_`.")
    if days is not None and not 0 < days < 100 * 365:
        _exit_with("--days must be greater than 0 and less than 36500.")
    token, record = new_key(
        name=name,
        tenant=tenant,
        scopes=tuple(dict.fromkeys(scope or [Scope.USE])),
        expires_at=None if days is None else time.time() + days * _DAY,
        requests_per_minute=requests_per_minute,
        concurrent_answers=concurrent_answers,
        stored_bytes=stored_bytes,
        max_priority=max_priority,
    )
    _with_store(data_dir, lambda store: store.add(record))
    _errors.print(f"{record.id}, shown only once; send it as `Authorization: Bearer …`:", highlight=False)
    _console.print(token, highlight=False, soft_wrap=True)


@keys_app.command("list")
def list_keys(*, data_dir: DataDirOption = None) -> None:
    """List all keys, also expired and revoked ones."""
    _console.print(_LINE.format("id", "tenant", "scopes", "created", "expires", "state", "name"), soft_wrap=True)
    for record in _with_store(data_dir, lambda store: store.all()):
        created, expires = _day(record.created_at), _day(record.expires_at)
        line = _LINE.format(
            record.id, record.tenant, " ".join(record.scopes), created, expires, _state(record), record.name
        )
        _console.print(line, highlight=False, markup=False, soft_wrap=True)


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id of a key, as `list` shows it.")],
    *,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke a key, with immediate effect at every replica."""
    if not _with_store(data_dir, lambda store: store.revoke(key_id)):
        _exit_with(f"There is no key {key_id}.")


@keys_app.command()
def clear(*, data_dir: DataDirOption = None) -> None:
    """Delete all keys, also revoked ones. A service on loopback then requires no key."""
    _with_store(data_dir, lambda store: store.clear())


def check_exposure(settings: "Settings") -> None:
    """Refuse to serve other machines without authentication.

    Raises:
        SettingsError: the host is not loopback, there is no key, and `allow_unauthenticated` is not set.
        RedisServerError: no redis-server was found in which to look for keys.
        Unavailable: Redis does not respond.
    """
    from service.settings import SettingsError

    if not settings.may_be_open and not _ask(settings, lambda store: store.any()):
        raise SettingsError(
            f"Refusing to listen on {settings.host} without authentication. Create an API key with "
            "`reeltalk keys add NAME`, or listen on 127.0.0.1, or put the service behind a gateway that authenticates "
            "and set REELTALK_ALLOW_UNAUTHENTICATED=true."
        )


def _with_store(data_dir: Path | None, action: "Callable[[ApiKeyStore], Awaitable[_T]]") -> _T:
    from service.errors import Unavailable
    from service.observability.logging import configure_logging
    from service.settings import SettingsError, load_settings
    from service.store.redis_server import RedisServerError

    configure_logging(level="error", style="text")
    try:
        return _ask(load_settings({"data_dir": data_dir}), action)
    except (SettingsError, RedisServerError, Unavailable) as error:
        _exit_with(str(error))


def _ask(settings: "Settings", action: "Callable[[ApiKeyStore], Awaitable[_T]]") -> _T:
    import asyncio

    from service.store.api_keys import ApiKeyStore
    from service.store.connection import connect

    async def ask(url: str) -> _T:
        async with contextlib.aclosing(connect(url)) as redis:
            return await action(ApiKeyStore(redis))

    with _redis(settings) as url:
        return asyncio.run(ask(url))


@contextlib.contextmanager
def _redis(settings: "Settings") -> Iterator[str]:
    from service.store.redis_server import found_redis

    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    with found_redis(settings.data_dir) as url:
        yield url


def _exit_with(message: str) -> Never:
    _errors.print(f"reeltalk: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _state(record: "ApiKeyRecord") -> str:
    if record.revoked_at is not None:
        return "revoked"
    return "valid" if record.is_valid() else "expired"
