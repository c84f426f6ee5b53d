"""Every block is held, kept or blank, whatever happens."""

from hypothesis import given
from hypothesis import strategies as st

from model.engine.block_pool import BlockPool


def key(number: int) -> bytes:
    return f"contents {number}".encode()


def test_contents_are_found_while_held_and_after_until_the_room_is_needed() -> None:
    pool = BlockPool(3)
    one, two = pool.take(2)
    pool.name(one, key(1))
    pool.name(two, key(2))
    assert (pool.find(key(1)), pool.find(key(2))) == (one, two)
    pool.give_back([one, two])
    assert (pool.num_free, pool.find(key(2))) == (3, two)

    pool.share(two)  # used again: no longer the next to go
    assert pool.take(2) == [one, 2]
    assert (pool.find(key(1)), pool.find(key(2))) == (None, two)


def test_the_end_of_a_sequence_is_given_away_before_its_beginning() -> None:
    pool = BlockPool(4)
    blocks = pool.take(4)
    for number, block in enumerate(blocks):
        pool.name(block, key(number))
    pool.give_back(blocks)
    assert pool.take(2) == blocks[2:]
    assert [pool.find(key(number)) for number in range(4)] == [blocks[0], blocks[1], None, None]


def test_a_shared_block_is_free_when_the_last_has_let_go() -> None:
    pool = BlockPool(1)
    (block,) = pool.take(1)
    pool.share(block)
    pool.give_back([block])
    assert (pool.num_holders(block), pool.num_free) == (1, 0)
    pool.give_back([block])
    assert pool.num_free == 1


def test_of_equal_contents_the_first_is_found() -> None:
    pool = BlockPool(2)
    one, two = pool.take(2)
    pool.name(one, key(1))
    pool.name(two, key(1))
    pool.give_back([one])
    pool.give_back([two])
    pool.check()
    assert pool.find(key(1)) == one


def test_what_is_disowned_is_not_found_again() -> None:
    pool = BlockPool(2)
    blocks = pool.take(2)
    pool.name(blocks[0], key(1))
    pool.disown(blocks)
    assert pool.find(key(1)) is None
    pool.give_back(blocks)
    pool.check()


def test_who_settles_finds_adjacent_blocks_and_others_keep_out() -> None:
    pool = BlockPool(10)
    home = pool.settle(4)
    assert home == range(4)
    assert pool.take(2, wanted=home) == [0, 1]
    assert pool.take(3) == [4, 5, 6]
    assert pool.settle(4) is None
    assert pool.take(1, wanted=home) == [2]
    assert pool.take(4) == [3, 7, 8, 9], "a home is no claim where nothing else is left"
    pool.leave(home)


@given(
    num_blocks=st.integers(1, 12),
    deeds=st.lists(
        st.tuples(st.sampled_from(["take", "share", "give", "name", "settle", "disown"]), st.integers(0, 11))
    ),
)
def test_no_storm_loses_a_block_or_gives_it_twice(num_blocks: int, deeds: list[tuple[str, int]]) -> None:
    pool = BlockPool(num_blocks)
    held: list[int] = []
    for deed, number in deeds:
        if deed == "take" and number <= pool.num_free:
            taken = pool.take(number)
            assert len(taken) == number
            assert not set(taken) & set(held)
            held += taken
        elif deed == "share" and (block := pool.find(key(number))) is not None:
            pool.share(block)
            held.append(block)
        elif deed == "settle":
            pool.settle(number + 1)
        elif held and deed == "give":
            pool.give_back([held.pop(number % len(held))])
        elif held and deed == "name":
            pool.name(held[number % len(held)], key(number))
        elif held and deed == "disown":
            pool.disown([held[number % len(held)]])
        pool.check()
        assert sorted(held) == sorted(block for block in range(num_blocks) for _ in range(pool.num_holders(block)))
