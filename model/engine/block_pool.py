"""Which blocks of the KV cache are free, owned, shared, or free but still worth finding by their contents.

Pure Python, and the only owner of these facts; the tensors lie elsewhere and are never touched from here.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice


class BlockPool:
    """So many blocks, each owned by as many as hold it.

    A block that nobody holds is free. One whose contents have a key stays findable while it is free, and is given
    away only when no other is left: least recently used first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._blank: dict[int, None] = dict.fromkeys(range(num_blocks))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._homes: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._blank) + len(self._kept)

    def num_holders(self, block: int) -> int:
        """How many hold a block."""
        return self._holders[block]

    def is_free(self, block: int) -> bool:
        """Whether nobody holds a block."""
        return self._holders[block] == 0

    def find(self, key: bytes) -> int | None:
        """The block with these contents, held or free."""
        return self._block_of.get(key)

    def share(self, block: int) -> None:
        """Hold a block whose contents are known, once more."""
        if self._holders[block] == 0:
            self._kept.pop(block, None)
            self._blank.pop(block, None)
        self._holders[block] += 1

    def settle(self, num_blocks: int) -> range | None:
        """Find adjacent blocks that are free, known for nothing and nobody's home, to be taken one after the other.

        Nothing is taken yet. Others keep out of a home as long as there is anything else.
        """
        if len(self._blank) < num_blocks:
            return None
        first = last = -2
        for block in sorted(self._blank.keys() - self._homes):
            first = first if block == last + 1 else block
            last = block
            if last - first + 1 == num_blocks:
                self._homes.update(home := range(first, last + 1))
                return home
        return None

    def leave(self, home: range) -> None:
        """Give up a home; what was taken of it stays held."""
        self._homes.difference_update(home)

    def take(self, num_blocks: int, *, wanted: Iterable[int] = ()) -> list[int]:
        """Hold so many blocks of unknown contents: those `wanted` that are blank, then any, in ascending order."""
        assert num_blocks <= self.num_free, "whoever takes has looked at num_free"
        taken = [block for block in wanted if block in self._blank][:num_blocks]
        for block in taken:
            del self._blank[block]
        others = self._others(num_blocks - len(taken))
        for block in (*taken, *others):
            self._holders[block] = 1
        return taken + others

    def give_back(self, blocks: Sequence[int]) -> None:
        """Let go of blocks, the first the most worth keeping."""
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} is given back once too often"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                (self._kept if block in self._key_of else self._blank)[block] = None

    def name(self, block: int, key: bytes) -> None:
        """Make a held block findable by its contents, unless another has the same."""
        assert self._holders[block] > 0
        if key not in self._block_of and block not in self._key_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def disown(self, blocks: Iterable[int]) -> None:
        """Make held blocks unfindable: what is in them is not to be trusted."""
        for block in blocks:
            assert self._holders[block] > 0
            if key := self._key_of.pop(block, None):
                del self._block_of[key]

    def forget(self) -> None:
        """Forget all contents that nobody holds."""
        while self._kept:
            self._evict()

    def check(self) -> None:
        """Assert that every block is in exactly one state."""
        for block, holders in enumerate(self._holders):
            states = (holders > 0, block in self._blank, block in self._kept)
            assert sum(states) == 1, f"block {block} is {states}"
            assert not (block in self._blank and block in self._key_of)
            assert not (block in self._kept and block not in self._key_of)
        assert {block: key for key, block in self._block_of.items()} == self._key_of

    def _others(self, num_blocks: int) -> list[int]:
        """Blank blocks outside all homes, then inside, then the least recently used of those that are kept."""
        if num_blocks == 0:
            return []
        free = list(islice((block for block in self._blank if block not in self._homes), num_blocks))
        free += islice((block for block in self._blank if block in self._homes), num_blocks - len(free))
        for block in free:
            del self._blank[block]
        free += [self._evict(take=True) for _ in range(num_blocks - len(free))]
        return sorted(free)

    def _evict(self, *, take: bool = False) -> int:
        block, _ = self._kept.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        if not take:
            self._blank[block] = None
        return block

    def __repr__(self) -> str:
        held = self.num_blocks - self.num_free
        return f"{held} held, {len(self._kept)} kept, {len(self._blank)} blank"
