"""Every block is in use, cached or empty, and adjacent blocks are allocated where possible."""

from hypothesis import given
from hypothesis import strategies as st

from model.engine.block_pool import BlockPool, adjacent_runs


def key(number: int) -> bytes:
    return f"contents {number}".encode()


def test_contents_are_found_until_their_block_is_allocated_again() -> None:
    pool = BlockPool(3)
    one, two = pool.allocate(2)
    pool.register(one, key(1))
    pool.register(two, key(2))
    assert (pool.find(key(1)), pool.find(key(2))) == (one, two)
    pool.free([one, two])
    assert (pool.num_free, pool.find(key(2))) == (3, two)

    pool.share(two)  # in use again, so it is not allocated next
    assert pool.allocate(2) == [one, 2]
    assert (pool.find(key(1)), pool.find(key(2))) == (None, two)


def test_the_end_of_a_sequence_is_allocated_again_before_its_beginning() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    for number, block in enumerate(blocks):
        pool.register(block, key(number))
    pool.free(blocks)
    assert pool.allocate(2) == blocks[2:]
    assert [pool.find(key(number)) for number in range(4)] == [blocks[0], blocks[1], None, None]


def test_a_shared_block_is_free_when_its_last_holder_frees_it() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.share(block)
    pool.free([block])
    assert (pool.num_holders(block), pool.num_free) == (1, 0)
    pool.free([block])
    assert pool.num_free == 1


def test_of_blocks_with_equal_contents_the_first_is_found() -> None:
    pool = BlockPool(2)
    one, two = pool.allocate(2)
    pool.register(one, key(1))
    pool.register(two, key(1))
    pool.free([one])
    pool.free([two])
    pool.check()
    assert pool.find(key(1)) == one


def test_an_unregistered_block_is_not_found_again() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(2)
    pool.register(blocks[0], key(1))
    pool.unregister(blocks)
    assert pool.find(key(1)) is None
    pool.free(blocks)
    pool.check()


def test_a_sequence_gets_adjacent_blocks_and_others_avoid_those_reserved_for_it() -> None:
    pool = BlockPool(10)
    assert pool.allocate(2, reserve=4) == [0, 1]
    assert pool.allocate(3, reserve=7) == [4, 5, 6], "there are not so many adjacent blocks: any, but not reserved ones"
    assert pool.allocate(1, after=1) == [2]
    assert pool.allocate(4) == [3, 7, 8, 9], "reserved blocks are allocated when there are no others"
    pool.check()


def test_blocks_reserved_for_a_sequence_are_free_for_all_when_it_ends() -> None:
    pool = BlockPool(6)
    blocks = pool.allocate(2, reserve=4)
    blocks += pool.allocate(1, after=blocks[-1])
    pool.free(blocks)
    assert pool.allocate(6, reserve=6) == [0, 1, 2, 3, 4, 5]


def test_a_block_table_is_divided_into_runs_of_adjacent_blocks() -> None:
    blocks = [4, 5, 6, 2, 3, 8]
    assert list(adjacent_runs(blocks, range(6))) == [range(3), range(3, 5), range(5, 6)]
    assert list(adjacent_runs(blocks, range(1, 4))) == [range(1, 3), range(3, 4)]
    assert list(adjacent_runs(blocks, range(0))) == []


@given(
    num_blocks=st.integers(1, 12),
    actions=st.lists(
        st.tuples(
            st.sampled_from(["allocate", "reserve", "extend", "share", "free", "register", "unregister"]),
            st.integers(0, 11),
        )
    ),
)
def test_any_actions_lose_no_block_and_allocate_none_twice(num_blocks: int, actions: list[tuple[str, int]]) -> None:
    pool = BlockPool(num_blocks)
    held: list[int] = []
    for action, number in actions:
        block = held[number % len(held)] if held else None
        if action in {"allocate", "reserve", "extend"} and number <= pool.num_free:
            reserve = number + 2 if action == "reserve" else 0
            allocated = pool.allocate(number, after=block if action == "extend" else None, reserve=reserve)
            assert len(allocated) == number
            assert not set(allocated) & set(held)
            held += allocated
        elif action == "share" and (found := pool.find(key(number))) is not None:
            pool.share(found)
            held.append(found)
        elif block is not None and action == "free":
            held.remove(block)
            pool.free([block])
        elif block is not None and action == "register":
            pool.register(block, key(number))
        elif block is not None and action == "unregister":
            pool.unregister([block])
        pool.check()
        assert sorted(held) == sorted(block for block in range(num_blocks) for _ in range(pool.num_holders(block)))
