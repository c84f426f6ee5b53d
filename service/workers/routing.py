"""Which worker gets an answer: one that has computed how it begins, unless that one has too much to do. No I/O."""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from model.text.conversation import Conversation

MAX_PREFIXES = 8192
SLACK = 4.0
"""How much more than the least loaded a worker may have to do and still be preferred. A shared prefix spares the
prefill of at most one prompt; a place behind so many others costs more than that."""

WorkerT = TypeVar("WorkerT", bound=Hashable)


def prefixes(conversation: Conversation, feature_keys: Sequence[str], *, salt: str) -> tuple[bytes, ...]:
    """Names of how a prompt begins, the shortest first: system text and videos, and then these with every turn.

    As in the engine's prefix cache, each depends on all that is before it, and on the salt. A session's next
    question begins with what this one names, and every session about a video with the same first one.
    """
    digest = hashlib.sha256(
        repr((salt, conversation.system, tuple(feature_keys), conversation.clips)).encode()
    ).digest()
    names = [digest]
    for turn in conversation.turns:
        digest = hashlib.sha256(digest + repr((turn.role, turn.text)).encode("utf-8", "surrogatepass")).digest()
        names.append(digest)
    return tuple(names)


class PrefixTable(Generic[WorkerT]):
    """Who has computed what, as far as is remembered: the least recently used is forgotten first.

    An entry may be wrong, since a worker drops blocks that it needs; then the answer costs a prefill, as anywhere.
    """

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        self._max_prefixes = max_prefixes
        self._holders: OrderedDict[bytes, set[WorkerT]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def choose(self, names: Sequence[bytes], loads: Mapping[WorkerT, float]) -> WorkerT:
        """The worker for a prompt that begins so; `loads` has those that can take it, and what each has to do.

        Of those that have equally little to do the prompt's beginning decides, so that videos are shared out.
        """
        least = min(loads, key=lambda worker: (loads[worker], hash((names[0], worker)) if names else 0))
        for name in reversed(names):
            near = [worker for worker in self._holders.get(name, ()) if worker in loads]
            if near:
                nearest = min(near, key=loads.__getitem__)
                if loads[nearest] <= loads[least] + SLACK:
                    return nearest
        return least

    def remember(self, names: Sequence[bytes], worker: WorkerT) -> None:
        """A worker computes a prompt that begins so."""
        for name in names:
            self._holders.setdefault(name, set()).add(worker)
            self._holders.move_to_end(name)
        while len(self._holders) > self._max_prefixes:
            self._holders.popitem(last=False)

    def forget(self, worker: WorkerT) -> None:
        """A worker is gone, and all it had with it."""
        for name, holders in list(self._holders.items()):
            holders.discard(worker)
            if not holders:
                del self._holders[name]
