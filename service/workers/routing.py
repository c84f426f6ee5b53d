"""Chooses the worker for a prompt: one that has cached a prefix of it, unless its load is too high. No I/O."""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from model.text.conversation import Conversation

MAX_PREFIXES = 8192
MAX_EXTRA_LOAD = 4.0
"""How much a preferred worker's load may exceed the lowest load. A shared prefix saves the prefill of at most one
prompt; waiting behind more sequences than this costs more."""

WorkerT = TypeVar("WorkerT", bound=Hashable)


def prompt_prefixes(conversation: Conversation, feature_keys: Sequence[str], *, salt: str) -> tuple[bytes, ...]:
    """Return one digest for each prefix of a prompt, the shortest first.

    The first covers the system text and the videos; each of the others covers one more turn. As in the engine's prefix
    cache, a digest depends on everything before it and on the salt. The prefixes of a session's next question start
    with those of its last one; all sessions on one video share the first.
    """
    digest = hashlib.sha256(
        repr((salt, conversation.system, tuple(feature_keys), conversation.clips)).encode()
    ).digest()
    prefixes = [digest]
    for turn in conversation.turns:
        digest = hashlib.sha256(digest + repr((turn.role, turn.text)).encode("utf-8", "surrogatepass")).digest()
        prefixes.append(digest)
    return tuple(prefixes)


class PrefixTable(Generic[WorkerT]):
    """Records which workers have computed which prefixes; evicts the least recently used.

    An entry can be out of date, since a worker's prefix cache evicts blocks; the prompt is then prefilled in full.
    """

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        self._max_prefixes = max_prefixes
        self._workers: OrderedDict[bytes, set[WorkerT]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._workers)

    def choose(self, prefixes: Sequence[bytes], loads: Mapping[WorkerT, float]) -> WorkerT:
        """Choose a worker for a prompt with these prefixes; `loads` holds the load of every worker that can take it.

        Among equally loaded workers the first prefix decides, which spreads videos over the workers.
        """
        least_loaded = min(loads, key=lambda worker: (loads[worker], hash((prefixes[0], worker)) if prefixes else 0))
        for prefix in reversed(prefixes):
            candidates = [worker for worker in self._workers.get(prefix, ()) if worker in loads]
            if candidates:
                preferred = min(candidates, key=loads.__getitem__)
                if loads[preferred] <= loads[least_loaded] + MAX_EXTRA_LOAD:
                    return preferred
        return least_loaded

    def add(self, prefixes: Sequence[bytes], worker: WorkerT) -> None:
        """Record that a worker computes a prompt with these prefixes."""
        for prefix in prefixes:
            self._workers.setdefault(prefix, set()).add(worker)
            self._workers.move_to_end(prefix)
        while len(self._workers) > self._max_prefixes:
            self._workers.popitem(last=False)

    def remove(self, worker: WorkerT) -> None:
        """Remove a worker that has ended from all entries."""
        for prefix, workers in list(self._workers.items()):
            workers.discard(worker)
            if not workers:
                del self._workers[prefix]
