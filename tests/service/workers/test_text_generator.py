"""A worker computes the condition of a conversation from its features, also when it takes over an answer."""

import numpy as np
import pytest

from model.engine.config import EngineConfig
from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.features import pack
from model.text.conversation import Clip, Conversation, Turn
from service.workers.protocol import Generate, Report, StepDone
from service.workers.text_generator import TextGenerator

MAX_TOKENS = 12


def command(seed: int, *, heard: bool = True, told: tuple[int, ...] = ()) -> Generate:
    """A question about a clip, by a job of the name of its features."""
    key = f"features:{seed} {heard}"
    random = np.random.default_rng(seed)
    parts = ("audio", "video") if heard else ("video",)
    features = {part: random.standard_normal((1, 32)).astype(np.float16) for part in parts}
    return Generate(
        job_id=key,
        conversation=Conversation(
            clips=(Clip(frame_indices=(0,), fps=1.0, parts=frozenset(parts)),),
            turns=(Turn(role="user", text="What do you see and hear?"),),
        ),
        features=(pack(features, key),),
        feature_keys=(key,),
        cache_salt="acme",
        params=SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True),
        output_token_ids=told,
    )


class Worker:
    """A text generator, and what it reports."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        family = load_family("imagebind-llm")
        config = EngineConfig(max_num_seqs=4, condition_shapes=family.condition_shapes)
        self.generator = TextGenerator(family, config, report=self.reports.append)

    def answers(self, *commands: Generate) -> dict[str, tuple[list[int], int]]:
        """The token ids of each job, and how many tokens were cached when it began."""
        self.reports.clear()
        for each in commands:
            self.generator.add(each)
        while self.generator.has_work:
            self.generator.step()
        answers: dict[str, tuple[list[int], int]] = {}
        for report in self.reports:
            assert isinstance(report, StepDone), report
            for delta in report.deltas:
                ids, _ = answers.setdefault(delta.job_id, ([], 0))
                answers[delta.job_id] = ([*ids, *delta.token_ids], delta.num_cached_tokens)
        return answers


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker()


def test_answers_depend_on_the_clip_and_its_sound_and_share_blocks_only_within_one(worker: Worker) -> None:
    cases = command(1), command(1, heard=False), command(2)
    first = worker.answers(*cases)
    assert len({tuple(ids) for ids, _ in first.values()}) == len(cases)
    assert all(num_cached == 0 for _, num_cached in first.values())
    again = worker.answers(*cases)
    assert all(num_cached > 0 for _, num_cached in again.values())
    assert {job: ids for job, (ids, _) in again.items()} == {job: ids for job, (ids, _) in first.items()}


def test_another_worker_continues_an_answer_under_its_condition(worker: Worker) -> None:
    [(whole, _)] = worker.answers(command(3)).values()
    [(rest, num_cached)] = Worker().answers(command(3, told=tuple(whole[:5]))).values()
    assert (rest, num_cached) == (whole[5:], 0)
