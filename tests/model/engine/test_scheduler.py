"""The scheduler, read by its repr: sequences as `id computed/known`, chunks as `id [start:end]`, `*` if sampled."""

import math
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from model.engine.config import EngineConfig
from model.engine.sampling_params import SamplingParams
from model.engine.scheduler import Schedule, Scheduler
from model.engine.sequence import Sequence, TextSegment


def make_scheduler(
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


def compute(scheduler: Scheduler) -> Schedule:
    """Schedule a step, and append a token to the sequence of every sampled chunk."""
    schedule = scheduler.schedule()
    for chunk in schedule.chunks:
        if chunk.sampled:
            scheduler.extend([chunk.sequence], [(chunk.sequence, 7)])
    return schedule


def test_prompts_are_prefilled_together_and_then_decode_a_token_a_step() -> None:
    scheduler = make_scheduler(seqs=4, budget=8)
    scheduler.add(sequence("a", 3))
    scheduler.add(sequence("b", 4))
    assert repr(scheduler) == "running none; waiting a 0/3, b 0/4"

    first = compute(scheduler)
    assert repr(first) == "compute a [0:3]*, b [0:4]*; ended none"
    assert repr(scheduler) == "running a 3/4, b 4/5; waiting none"

    second = compute(scheduler)
    assert repr(second) == "compute a [3:4]*, b [4:5]*; ended none"
    assert repr(scheduler) == "running a 4/5, b 5/6; waiting none"


def test_a_long_prompt_is_prefilled_in_chunks_beside_the_decode_of_others() -> None:
    scheduler = make_scheduler(seqs=4, budget=5)
    scheduler.add(sequence("a", 2))
    compute(scheduler)
    scheduler.add(sequence("long", 9))
    scheduler.add(sequence("late", 1))

    first = compute(scheduler)
    assert repr(first) == "compute a [2:3]*, long [0:4]; ended none"
    second = compute(scheduler)
    assert repr(second) == "compute a [3:4]*, long [4:8]; ended none"
    third = compute(scheduler)
    assert repr(third) == "compute a [4:5]*, long [8:9]*, late [0:1]*; ended none"
    assert repr(scheduler) == "running a 5/6, long 9/10, late 1/2; waiting none"


def test_a_sequence_waits_while_max_num_seqs_are_running() -> None:
    scheduler = make_scheduler(seqs=2, budget=8)
    a, b, c = (sequence(name, 1) for name in "abc")
    for each in (a, b, c):
        scheduler.add(each)
    compute(scheduler)
    assert repr(scheduler) == "running a 1/2, b 1/2; waiting c 0/1"

    scheduler.finish([a], "length")
    assert (a.status, a.finish_reason) == ("finished", "length")
    assert repr(scheduler.schedule()) == "compute b [1:2]*, c [0:1]*; ended none"


def test_a_sequence_of_higher_priority_is_admitted_first_and_preempts_none() -> None:
    scheduler = make_scheduler(seqs=1, budget=8)
    scheduler.add(sequence("first", 2))
    compute(scheduler)
    for request_id, priority in (("low", -1), ("a", 0), ("high", 3), ("b", 0), ("also high", 3)):
        scheduler.add(sequence(request_id, 2, priority=priority))
    compute(scheduler)
    assert repr(scheduler) == "running first 3/4; waiting high 0/2, also high 0/2, a 0/2, b 0/2, low 0/2"
    scheduler.abort("first")
    compute(scheduler)
    assert repr(scheduler) == "running high 2/3; waiting also high 0/2, a 0/2, b 0/2, low 0/2"


def test_the_lowest_priority_is_preempted() -> None:
    scheduler = make_scheduler(seqs=3, budget=16, blocks=4)
    scheduler.add(sequence("low", 4, priority=-1))
    scheduler.add(sequence("normal", 4))
    for _ in range(6):
        compute(scheduler)
    assert repr(scheduler).startswith("running normal")
    assert "waiting low 0/" in repr(scheduler)
    scheduler.check()


def test_an_abort_takes_effect_at_the_next_step() -> None:
    scheduler = make_scheduler(seqs=1, budget=8)
    a, b = sequence("a", 1), sequence("b", 1)
    scheduler.add(a)
    scheduler.add(b)
    compute(scheduler)

    assert scheduler.abort("a")
    assert scheduler.abort("b")
    assert not scheduler.abort("unknown")
    assert (a.status, b.status) == ("running", "waiting")

    assert repr(scheduler.schedule()) == "compute nothing; ended a abort, b abort"
    assert (a.status, b.status) == ("finished", "finished")
    assert not scheduler.has_work
    assert not scheduler.abort("a")


def test_a_waiting_sequence_takes_the_place_of_an_aborted_one_in_the_same_step() -> None:
    scheduler = make_scheduler(seqs=1, budget=8)
    scheduler.add(sequence("a", 1))
    scheduler.add(sequence("b", 2))
    compute(scheduler)
    scheduler.abort("a")
    assert repr(scheduler.schedule()) == "compute b [0:2]*; ended a abort"


def test_a_sequence_added_with_a_finish_reason_is_reported_without_work() -> None:
    scheduler = make_scheduler(seqs=1, budget=8)
    complete = sequence("a", 3)
    complete.finish_reason = "stop"
    scheduler.add(complete)
    assert scheduler.has_work
    scheduler.abort("a")
    assert repr(scheduler.schedule()) == "compute nothing; ended a stop"


def test_a_resumed_answer_is_prefilled_with_its_prompt() -> None:
    scheduler = make_scheduler(seqs=1, budget=8)
    resumed = sequence("a", 3)
    resumed.output_token_ids += [5, 6]
    scheduler.add(resumed)
    assert repr(scheduler.schedule()) == "compute a [0:5]*; ended none"


@given(
    seqs=st.integers(1, 4),
    spare=st.integers(0, 6),
    actions=st.lists(st.tuples(st.sampled_from(["add", "abort", "finish", "step"]), st.integers(0, 12))),
)
def test_any_actions_keep_the_order_and_the_limits_and_lose_no_sequence(
    seqs: int, spare: int, actions: list[tuple[str, int]]
) -> None:
    scheduler = make_scheduler(seqs=seqs, budget=seqs + spare)
    added: list[Sequence] = []
    for action, number in actions:
        decoding = [each for each in added if each.status == "running" and each.num_uncomputed_tokens == 1]
        if action == "add":
            added.append(sequence(str(len(added)), number + 1))
            scheduler.add(added[-1])
        elif action == "abort":
            scheduler.abort(str(number))
        elif action == "finish" and decoding:
            scheduler.finish([decoding[number % len(decoding)]], "stop")
        elif action == "step":
            schedule = compute(scheduler)
            served = [chunk.sequence for chunk in schedule.chunks]
            assert sum(chunk.num_tokens for chunk in schedule.chunks) <= seqs + spare
            assert scheduler.num_running <= seqs
            assert all(each in served for each in decoding if each not in schedule.ended)
            assert all(chunk.sampled for chunk in schedule.chunks[:-1])
            assert served == sorted(served, key=added.index)
    for _ in range(1000):
        for chunk in scheduler.schedule().chunks:
            if chunk.sampled:
                scheduler.finish([chunk.sequence], "length")
        if not scheduler.has_work:
            break
    assert all(each.status == "finished" and each.finish_reason for each in added)


def test_the_scheduler_runs_where_there_is_no_torch() -> None:
    probe = "import sys, model.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_while_a_sequence_decodes_prefill_is_limited() -> None:
    scheduler = make_scheduler(seqs=4, budget=64, beside=3)
    scheduler.add(sequence("a", 2))
    compute(scheduler)
    scheduler.add(sequence("long", 8))
    compute(scheduler)
    assert repr(scheduler) == "running a 3/4, long 3/8; waiting none"
    scheduler.abort("a")
    assert repr(scheduler.schedule()) == "compute long [3:8]*; ended a abort"


def test_beside_decode_chunks_shrink_so_that_all_steps_take_about_as_long() -> None:
    scheduler = make_scheduler(seqs=4, budget=64, beside=6, half_speed_context=6)
    scheduler.add(sequence("a", 1))
    compute(scheduler)
    scheduler.add(sequence("long", 16))
    scheduler.add(sequence("b", 2))
    chunks = []
    for _ in range(4):
        step = compute(scheduler)
        chunks.append(repr(step))
    assert chunks == [
        "compute a [1:2]*, long [0:6]; ended none",
        "compute a [2:3]*, long [6:9]; ended none",  # each token takes twice the time
        "compute a [3:4]*, long [9:11], b [0:1]; ended none",  # two and a half times: for two that is five of six
        "compute a [4:5]*, b [1:2]*, long [11:13]; ended none",
    ]
    scheduler.abort("a")
    scheduler.abort("b")  # now no sequence decodes
    assert repr(scheduler.schedule()) == "compute long [13:16]*; ended a abort, b abort"


def test_the_last_to_arrive_is_preempted_and_the_first_to_be_admitted_again() -> None:
    scheduler = make_scheduler(seqs=4, budget=64, blocks=5)
    a, b = sequence("a", 8), sequence("b", 6)
    b.prompt = (TextSegment(tuple(range(50, 56))),)
    scheduler.add(a)
    scheduler.add(b)
    first = compute(scheduler)  # two blocks each; one is free
    assert repr(first) == "compute a [0:8]*, b [0:6]*; ended none"
    for _ in range(3):  # the ninth token of a takes the last block; b cannot have a ninth
        compute(scheduler)
    assert repr(scheduler) == "running a 11/12; waiting b 0/9"
    assert (scheduler.num_preemptions, b.block_table) == (1, [])
    scheduler.check()
    scheduler.finish([a], "length")
    # The blocks that it had filled are still cached.
    assert repr(scheduler.schedule()) == "compute b [8:9]*; ended none"


def test_a_chunk_says_how_many_of_its_first_blocks_are_shared() -> None:
    scheduler = make_scheduler(seqs=4, budget=64)
    scheduler.add(sequence("a", 10))
    scheduler.add(sequence("b", 9))
    chunks = scheduler.schedule().chunks
    assert [(repr(chunk), chunk.num_shared_blocks) for chunk in chunks] == [("a [0:10]*", 2), ("b [8:9]*", 2)]


def test_sequences_are_extended_forked_and_finished_in_one_transition() -> None:
    scheduler = make_scheduler(seqs=4, budget=64)
    scheduler.add(a := sequence("a", 6))
    scheduler.schedule()
    a, b = scheduler.extend([a], [(a, 7), (a, 8)])
    assert repr(scheduler) == "running a 6/7, a 6/7; waiting none"
    assert (a.output_token_ids, b.output_token_ids) == ([7], [8])
    assert (a.block_table, b.block_table) == ([0, 1], [0, 27]), "the full block is shared, the other is copied"
    assert repr(scheduler.schedule()) == "compute a [6:7]*, a [6:7]*; ended none; copy 1 to 27"
    scheduler.check()

    (c,) = scheduler.extend([a, b], [(b, 9)])
    assert c is b
    assert (a.status, repr(scheduler)) == ("finished", "running a 7/8; waiting none")
    assert repr(scheduler.schedule()) == "compute a [7:8]*; ended none"
    scheduler.check()


def test_a_fork_waits_where_there_is_no_place_for_it() -> None:
    scheduler = make_scheduler(seqs=1, budget=64)
    scheduler.add(a := sequence("a", 6))
    scheduler.schedule()
    scheduler.extend([a], [(a, 7), (a, 8)])
    assert repr(scheduler) == "running a 6/7; waiting a 0/7"
    assert repr(scheduler.schedule()) == "compute a [6:7]*; ended none"
