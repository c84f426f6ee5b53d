"""Cursor pagination over ids in a sorted set by time of creation, newest first by default."""

from dataclasses import dataclass
from typing import Literal

from service.store.connection import StoreClient, text


@dataclass(frozen=True, slots=True)
class Page:
    """One page of ids, and whether more follow."""

    ids: tuple[str, ...]
    has_more: bool


Order = Literal["desc", "asc"]
"""Newest or oldest first."""


async def list_page(redis: StoreClient, key: str, *, limit: int, after: str | None, order: Order = "desc") -> Page:
    """Up to `limit` ids after the id `after`; from the start if `after` is None or no longer in the list."""
    start = 0
    if after is not None:
        rank = await (redis.zrevrank(key, after) if order == "desc" else redis.zrank(key, after))
        start = rank + 1 if isinstance(rank, int) else 0
    members = await redis.zrange(key, start, start + limit, desc=order == "desc")
    return Page(tuple(text(member) for member in members[:limit]), has_more=len(members) > limit)
