"""The blocks of the KV cache: which are in use, which are free, and which can be found by their contents.

Pure Python: it keeps counts and never touches the tensors. It alone decides and knows which blocks are adjacent.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice, takewhile


class BlockPool:
    """A fixed number of blocks, each with a count of its holders.

    A block without holders is free: either empty, or cached, which means that `find` returns it for the key of its
    contents. Empty blocks are allocated first, then cached ones, the least recently used first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._empty: dict[int, None] = dict.fromkeys(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._reserved_after: dict[int, range] = {}
        self._reserved: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks without holders."""
        return len(self._empty) + len(self._cached)

    def num_holders(self, block: int) -> int:
        """How many sequences hold a block."""
        return self._num_holders[block]

    def is_free(self, block: int) -> bool:
        """Whether no sequence holds a block."""
        return self._num_holders[block] == 0

    def count_shared(self, blocks: Iterable[int]) -> int:
        """How many of the blocks, counted from the first up to the first exception, have several holders."""
        return sum(1 for _ in takewhile(lambda block: self._num_holders[block] > 1, blocks))

    def find(self, key: bytes) -> int | None:
        """The block with these contents, in use or free."""
        return self._block_of.get(key)

    def share(self, block: int) -> None:
        """Add a holder to a block whose contents are known."""
        if self._num_holders[block] == 0:
            self._cached.pop(block, None)
            self._empty.pop(block, None)
        self._num_holders[block] += 1

    def allocate(self, num_blocks: int, *, after: int | None = None, reserve: int = 0) -> list[int]:
        """Allocate blocks of unknown contents, adjacent ones where possible.

        Args:
            num_blocks: how many; at most `num_free`.
            after: the last block of a sequence that goes on; the blocks reserved behind it are taken first.
            reserve: how many blocks a new sequence may take in all. If there are so many adjacent empty blocks, the
                first are allocated and the rest are reserved: other sequences get them only when no others are left.

        Returns:
            The blocks, in the order in which the sequence is to use them.
        """
        assert num_blocks <= self.num_free, "the caller has checked num_free"
        if num_blocks == 0:
            return []
        reserved = self._find_adjacent(reserve) if after is None else self._reserved_after.pop(after, range(0))
        blocks = [block for block in reserved if block in self._empty][:num_blocks]
        rest = reserved[reserved.index(blocks[-1]) + 1 :] if blocks else reserved
        for block in blocks:
            del self._empty[block]
        blocks += self._allocate_any(num_blocks - len(blocks))
        for block in blocks:
            self._num_holders[block] = 1
        self._reserved.difference_update(reserved)
        if rest:
            self._reserved_after[blocks[-1]] = rest
            self._reserved.update(rest)
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Remove a holder from each block; the first blocks stay cached the longest."""
        for block in reversed(blocks):
            assert self._num_holders[block] > 0, f"block {block} is freed once too often"
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                (self._cached if block in self._key_of else self._empty)[block] = None
                self._reserved.difference_update(self._reserved_after.pop(block, ()))

    def register(self, block: int, key: bytes) -> None:
        """Let `find` return a block in use for the key of its contents, unless it returns another for that key."""
        assert self._num_holders[block] > 0
        if key not in self._block_of and block not in self._key_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def unregister(self, blocks: Iterable[int]) -> None:
        """Let `find` no longer return these blocks, which are in use: their contents are wrong."""
        for block in blocks:
            assert self._num_holders[block] > 0
            if key := self._key_of.pop(block, None):
                del self._block_of[key]

    def check(self) -> None:
        """Assert that every block is in exactly one state, and that no block is reserved twice."""
        for block, num_holders in enumerate(self._num_holders):
            states = (num_holders > 0, block in self._empty, block in self._cached)
            assert sum(states) == 1, f"block {block} is {states}"
            assert not (block in self._empty and block in self._key_of)
            assert not (block in self._cached and block not in self._key_of)
        assert {block: key for key, block in self._block_of.items()} == self._key_of
        assert sorted(block for each in self._reserved_after.values() for block in each) == sorted(self._reserved)
        assert all(self._num_holders[block] for block in self._reserved_after)

    def _find_adjacent(self, num_blocks: int) -> range:
        """So many adjacent blocks that are empty and not reserved; none if there are not so many."""
        if not 0 < num_blocks <= len(self._empty):
            return range(0)
        first = last = -2
        for block in sorted(self._empty.keys() - self._reserved):
            first = first if block == last + 1 else block
            last = block
            if last - first + 1 == num_blocks:
                return range(first, last + 1)
        return range(0)

    def _allocate_any(self, num_blocks: int) -> list[int]:
        """Empty blocks that are not reserved, then reserved ones, then the least recently used of the cached ones."""
        if num_blocks == 0:
            return []
        blocks = list(islice((block for block in self._empty if block not in self._reserved), num_blocks))
        blocks += islice((block for block in self._empty if block in self._reserved), num_blocks - len(blocks))
        for block in blocks:
            del self._empty[block]
        for _ in range(num_blocks - len(blocks)):
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
            blocks.append(block)
        return sorted(blocks)

    def __repr__(self) -> str:
        return f"{self.num_blocks - self.num_free} in use, {len(self._cached)} cached, {len(self._empty)} empty"


def adjacent_runs(blocks: Sequence[int], indices: range) -> Iterator[range]:
    """Divide the indices of a block table into as few ranges as possible, each of adjacent blocks in order."""
    for _, run in groupby(indices, lambda index: blocks[index] - index):
        first, *others = run
        yield range(first, (others[-1] if others else first) + 1)
