"""The scheduler's stories by its repr: `id computed/known`, chunks `id [start:end]`, `*` where sampled."""

import math
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from model.engine.config import EngineConfig
from model.engine.sampling_params import SamplingParams
from model.engine.scheduler import Schedule, Scheduler
from model.engine.sequence import Sequence, TextSegment


def scheduler(
    *, seqs: int, budget: int, blocks: int = 64, beside: int = 512, half_speed_context: float = math.inf
) -> Scheduler:
    """Blocks of four tokens."""
    config = EngineConfig(
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        block_size=4,
        num_blocks=blocks,
        max_model_len=16,
        max_prefill_beside_decode=beside,
    )
    return Scheduler(config, half_speed_context=half_speed_context)


def sequence(request_id: str, num_prompt_tokens: int, *, priority: int = 0) -> Sequence:
    return Sequence(
        priority=priority,
        request_id=request_id,
        prompt=(TextSegment(tuple(range(num_prompt_tokens))),),
        params=SamplingParams(),
        max_output_tokens=100,
    )


def say(schedule: Schedule) -> None:
    """Stand in for the network and the sampler: every sampled chunk gets a token."""
    for chunk in schedule.chunks:
        if chunk.sampled:
            chunk.sequence.output_token_ids.append(7)


def test_prompts_are_prefilled_together_and_then_decode_a_token_a_step() -> None:
    story = scheduler(seqs=4, budget=8)
    story.add(sequence("a", 3))
    story.add(sequence("b", 4))
    assert repr(story) == "running none; waiting a 0/3, b 0/4"

    say(first := story.schedule())
    assert repr(first) == "compute a [0:3]*, b [0:4]*; ended none"
    assert repr(story) == "running a 3/4, b 4/5; waiting none"

    say(second := story.schedule())
    assert repr(second) == "compute a [3:4]*, b [4:5]*; ended none"
    assert repr(story) == "running a 4/5, b 5/6; waiting none"


def test_a_long_prompt_is_prefilled_in_chunks_beside_the_decode_of_others() -> None:
    story = scheduler(seqs=4, budget=5)
    story.add(sequence("a", 2))
    say(story.schedule())
    story.add(sequence("long", 9))
    story.add(sequence("late", 1))

    say(first := story.schedule())
    assert repr(first) == "compute a [2:3]*, long [0:4]; ended none"
    say(second := story.schedule())
    assert repr(second) == "compute a [3:4]*, long [4:8]; ended none"
    say(third := story.schedule())
    assert repr(third) == "compute a [4:5]*, long [8:9]*, late [0:1]*; ended none"
    assert repr(story) == "running a 5/6, long 9/10, late 1/2; waiting none"


def test_who_comes_late_waits_for_a_place() -> None:
    story = scheduler(seqs=2, budget=8)
    a, b, c = (sequence(name, 1) for name in "abc")
    for each in (a, b, c):
        story.add(each)
    say(story.schedule())
    assert repr(story) == "running a 1/2, b 1/2; waiting c 0/1"

    story.finish(a, "length")
    assert (a.status, a.finish_reason) == ("finished", "length")
    assert repr(story.schedule()) == "compute b [1:2]*, c [0:1]*; ended none"


def test_who_is_of_higher_priority_waits_before_the_others_and_displaces_nobody() -> None:
    story = scheduler(seqs=1, budget=8)
    story.add(sequence("first", 2))
    say(story.schedule())
    for request_id, priority in (("low", -1), ("a", 0), ("high", 3), ("b", 0), ("also high", 3)):
        story.add(sequence(request_id, 2, priority=priority))
    say(story.schedule())
    assert repr(story) == "running first 3/4; waiting high 0/2, also high 0/2, a 0/2, b 0/2, low 0/2"
    story.abort("first")
    say(story.schedule())
    assert repr(story) == "running high 2/3; waiting also high 0/2, a 0/2, b 0/2, low 0/2"


def test_room_is_made_by_the_lowest_priority() -> None:
    story = scheduler(seqs=3, budget=16, blocks=4)
    story.add(sequence("low", 4, priority=-1))
    story.add(sequence("normal", 4))
    for _ in range(6):
        say(story.schedule())
    assert repr(story).startswith("running normal")
    assert "waiting low 0/" in repr(story)
    story.check()


def test_an_abort_takes_effect_at_the_next_step() -> None:
    story = scheduler(seqs=1, budget=8)
    a, b = sequence("a", 1), sequence("b", 1)
    story.add(a)
    story.add(b)
    say(story.schedule())

    assert story.abort("a")
    assert story.abort("b")
    assert not story.abort("nobody")
    assert (a.status, b.status) == ("running", "waiting")

    assert repr(story.schedule()) == "compute nothing; ended a abort, b abort"
    assert (a.status, b.status) == ("finished", "finished")
    assert not story.has_work
    assert not story.abort("a")


def test_an_aborted_place_is_given_away_in_the_same_step() -> None:
    story = scheduler(seqs=1, budget=8)
    story.add(sequence("a", 1))
    story.add(sequence("b", 2))
    say(story.schedule())
    story.abort("a")
    assert repr(story.schedule()) == "compute b [0:2]*; ended a abort"


def test_a_sequence_that_comes_complete_is_passed_on_without_work() -> None:
    story = scheduler(seqs=1, budget=8)
    complete = sequence("a", 3)
    complete.finish_reason = "stop"
    story.add(complete)
    assert story.has_work
    story.abort("a")
    assert repr(story.schedule()) == "compute nothing; ended a stop"


def test_a_resumed_answer_is_prefilled_with_its_prompt() -> None:
    story = scheduler(seqs=1, budget=8)
    resumed = sequence("a", 3)
    resumed.output_token_ids += [5, 6]
    story.add(resumed)
    assert repr(story.schedule()) == "compute a [0:5]*; ended none"


@given(
    seqs=st.integers(1, 4),
    spare=st.integers(0, 6),
    deeds=st.lists(st.tuples(st.sampled_from(["add", "abort", "finish", "step"]), st.integers(0, 12))),
)
def test_no_storm_breaks_the_order_or_the_bounds_or_loses_anyone(
    seqs: int, spare: int, deeds: list[tuple[str, int]]
) -> None:
    story = scheduler(seqs=seqs, budget=seqs + spare)
    added: list[Sequence] = []
    for deed, number in deeds:
        decoding = [each for each in added if each.status == "running" and each.num_uncomputed_tokens == 1]
        if deed == "add":
            added.append(sequence(str(len(added)), number + 1))
            story.add(added[-1])
        elif deed == "abort":
            story.abort(str(number))
        elif deed == "finish" and decoding:
            story.finish(decoding[number % len(decoding)], "stop")
        elif deed == "step":
            schedule = story.schedule()
            served = [chunk.sequence for chunk in schedule.chunks]
            assert sum(chunk.num_tokens for chunk in schedule.chunks) <= seqs + spare
            assert story.num_running <= seqs
            assert all(each in served for each in decoding if each not in schedule.ended)
            assert all(chunk.sampled for chunk in schedule.chunks[:-1])
            assert served == sorted(served, key=added.index)
            say(schedule)
    for _ in range(1000):
        for chunk in story.schedule().chunks:
            if chunk.sampled:
                story.finish(chunk.sequence, "length")
        if not story.has_work:
            break
    assert all(each.status == "finished" and each.finish_reason for each in added)


def test_the_scheduler_runs_where_there_is_no_torch() -> None:
    probe = "import sys, model.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_while_anybody_decodes_a_prefill_goes_in_small_steps() -> None:
    story = scheduler(seqs=4, budget=64, beside=3)
    story.add(sequence("a", 2))
    say(story.schedule())
    story.add(sequence("long", 8))
    say(story.schedule())
    assert repr(story) == "running a 3/4, long 3/8; waiting none"
    story.abort("a")
    assert repr(story.schedule()) == "compute long [3:8]*; ended a abort"


def test_beside_decode_a_prefill_goes_in_steps_that_take_about_as_long() -> None:
    story = scheduler(seqs=4, budget=64, beside=6, half_speed_context=6)
    story.add(sequence("a", 1))
    say(story.schedule())
    story.add(sequence("long", 16))
    story.add(sequence("b", 2))
    chunks = []
    for _ in range(4):
        say(step := story.schedule())
        chunks.append(repr(step))
    assert chunks == [
        "compute a [1:2]*, long [0:6]; ended none",
        "compute a [2:3]*, long [6:9]; ended none",  # each token takes twice the time
        "compute a [3:4]*, long [9:11], b [0:1]; ended none",  # two and a half times: for two that is five of six
        "compute a [4:5]*, b [1:2]*, long [11:13]; ended none",
    ]
    story.abort("a")
    story.abort("b")  # now nobody waits for a next token
    assert repr(story.schedule()) == "compute long [13:16]*; ended a abort, b abort"


def test_the_last_to_arrive_makes_room_and_is_the_first_to_come_back() -> None:
    story = scheduler(seqs=4, budget=64, blocks=5)
    a, b = sequence("a", 8), sequence("b", 6)
    b.prompt = (TextSegment(tuple(range(50, 56))),)
    story.add(a)
    story.add(b)
    say(first := story.schedule())  # a takes two blocks, and b two; one is left
    assert repr(first) == "compute a [0:8]*, b [0:6]*; ended none"
    for _ in range(3):  # a takes the third of its own with its ninth token, b's eighth is the last that fits
        say(story.schedule())
    assert repr(story) == "running a 11/12; waiting b 0/9"
    assert (story.num_preemptions, b.block_table) == (1, [])
    story.check()
    story.finish(a, "length")
    # What it had computed is still known.
    assert repr(story.schedule()) == "compute b [8:9]*; ended none"


def test_who_shares_blocks_is_told() -> None:
    story = scheduler(seqs=4, budget=64)
    story.add(sequence("a", 10))
    story.add(sequence("b", 9))
    chunks = story.schedule().chunks
    assert [(repr(chunk), chunk.num_shared_blocks) for chunk in chunks] == [("a [0:10]*", 2), ("b [8:9]*", 2)]
