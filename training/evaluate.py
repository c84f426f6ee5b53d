"""Asks the default model about fresh clips, through real files, and counts the right answers.

`python -m training.evaluate` prints a table, with 95 % confidence intervals, and one line of JSON.
"""

import argparse
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from tqdm import tqdm

from model.families import load_family
from model.family import EncodedClip, Family
from model.offline import Offline, watch
from model.text.conversation import Clip, Conversation, Turn
from training.clips import Format, draw_format, write_pictures, write_scene
from training.dialogues import KINDS, Exchange, ask, draw_dialogue
from training.distractors import draw_distractor
from training.world import Scene, draw_scene

SEED = 20261122
"""Far from every seed that the model was trained on."""
UNSEEN_FORMATS = (
    ("mpeg2", 720, 406, 30000 / 1001),
    ("vp8", 96, 150, 7.5),
    ("mpeg2", 160, 720, 24000 / 1001),
    ("vp8", 1024, 576, 48.0),
)
"""Codecs, sizes and frame rates outside of the world: nothing of the kind was drawn for training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One clip, what is asked about it, one after the other, and the group it is counted in."""

    group: str
    clip: Clip
    encoded: EncodedClip
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One question, what the model said, and whether that is right."""

    group: str
    exchange: Exchange
    said: str

    @property
    def right(self) -> bool:
        """Whether the answer is the right one."""
        return self.exchange.is_right(self.said)


def answer_all(family: Family, asked: Sequence[tuple[Conversation, EncodedClip]], *, batch: int = 16) -> list[str]:
    """What the model says to every conversation, `batch` of them at a time."""
    offline = Offline(family, max_num_seqs=batch)
    said: dict[str, str] = defaultdict(str)
    for number, (conversation, clip) in enumerate(asked):
        offline.add(str(number), conversation, [clip])
    for output in offline.outputs():
        said[output.request_id] += output.text
    return [said[str(number)].strip() for number in range(len(asked))]


def judge(family: Family, cases: Sequence[Case]) -> Iterator[Verdict]:
    """Hold every dialogue, the model's own answers standing in its history."""
    histories: list[list[Turn]] = [[] for _ in cases]
    for turn in range(max((len(case.exchanges) for case in cases), default=0)):
        talking = [
            (case, history) for case, history in zip(cases, histories, strict=True) if turn < len(case.exchanges)
        ]
        for case, history in talking:
            history.append(Turn(role="user", text=case.exchanges[turn].question))
        asked = [(Conversation(clips=(case.clip,), turns=tuple(history)), case.encoded) for case, history in talking]
        for (case, history), said in zip(talking, answer_all(family, asked), strict=True):
            history.append(Turn(role="assistant", text=said))
            yield Verdict(group=case.group, exchange=case.exchanges[turn], said=said)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One clip to be drawn, written and asked about; a named one is a file that is there."""

    group: str
    number: int
    path: Path
    seed: int
    given: bool = False


def write(plan: Plan) -> None:
    """Draw the clip of a plan into its file."""
    random = Random(f"{plan.seed}:{plan.group}:{plan.number}")
    form = draw_format(random)
    if plan.group == "other":
        count, fps = random.randint(8, 60), random.choice((10.0, 25.0))
        pictures = draw_distractor(random, num_frames=count, width=form.width, height=form.height)
        write_pictures(pictures, form, plan.path, fps=fps)
        return
    scene = scene_of(plan)
    if plan.group == "unseen":
        codec, width, height, fps = UNSEEN_FORMATS[plan.number % len(UNSEEN_FORMATS)]
        form, scene = Format(codec=codec, width=width, height=height), replace(scene, fps=fps)
    write_scene(scene, form, plan.path)


def scene_of(plan: Plan) -> Scene:
    """What the clip of a plan shows."""
    scene = draw_scene(Random(f"{plan.seed}:{plan.group}:{plan.number}:scene"))
    if plan.group != "unseen":
        return scene
    return replace(scene, fps=UNSEEN_FORMATS[plan.number % len(UNSEEN_FORMATS)][3])


def cases_of(plan: Plan, family: Family) -> Iterator[Case]:
    """Every kind of question about the clip of a plan, each in a conversation of its own, and one long dialogue."""
    clip, encoded = watch(family, plan.path)
    random = Random(f"{plan.seed}:{plan.group}:{plan.number}:questions")
    if plan.group in ("other", "given"):
        yield Case(group=plan.group, clip=clip, encoded=encoded, exchanges=tuple(draw_dialogue(random, None, 5)))
        return
    scene = scene_of(plan)
    for kind in KINDS:
        if kind != "other_clip" and (exchanges := ask(random, scene, kind)):
            yield Case(group=plan.group, clip=clip, encoded=encoded, exchanges=tuple(exchanges))
    long = tuple(draw_dialogue(random, scene, 10))
    yield Case(group=f"{plan.group}, long", clip=clip, encoded=encoded, exchanges=long)


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share."""
    if not asked:
        return 0.0, 1.0
    z, share = 1.96, right / asked
    middle = (share + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z / (1 + z * z / asked) * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return middle - half, middle + half


def summary(verdicts: Iterable[Verdict]) -> dict[str, dict[str, dict[str, float]]]:
    """By group and kind, and over all kinds: how many were asked and right, the share, and its interval."""
    counted: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        for name in (verdict.exchange.kind, "all"):
            counted[verdict.group][name].append(verdict.right)
    return {group: {kind: _share(right) for kind, right in kinds.items()} for group, kinds in counted.items()}


def _share(right: Sequence[bool]) -> dict[str, float]:
    low, high = interval(sum(right), len(right))
    found = {"asked": len(right), "right": sum(right), "share": sum(right) / len(right), "low": low, "high": high}
    return {name: round(value, 4) for name, value in found.items()}


def evaluate(family: Family, plans: Sequence[Plan]) -> list[Verdict]:
    """Draw every clip, show it to the model, and hold the dialogues about it."""
    drawn = [plan for plan in plans if not plan.given]
    with ProcessPoolExecutor() as pool:
        for _ in tqdm(pool.map(write, drawn), desc="clips", total=len(drawn), unit="clip"):
            pass
    cases = [case for plan in tqdm(plans, desc="watching", unit="clip") for case in cases_of(plan, family)]
    total = sum(len(case.exchanges) for case in cases)
    return list(tqdm(judge(family, cases), desc="asking", total=total, unit="question"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("others", nargs="*", type=Path, help="videos of anything else, to be told apart")
    parser.add_argument("--clips", type=int, default=150, help="held-out clips; a third as many of the other groups")
    parser.add_argument(
        "--checkpoint", type=Path, default=None, help="a checkpoint folder (default: the one that ships)"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--wrong", type=int, default=0, help="print so many wrong answers")
    arguments = parser.parse_args()
    family = load_family("videochat", checkpoint=arguments.checkpoint)
    with tempfile.TemporaryDirectory(prefix="reeltalk-evaluate-") as folder:
        groups = {"held out": arguments.clips, "unseen": -(-arguments.clips // 3), "other": -(-arguments.clips // 3)}
        plans = [
            Plan(
                group=group, number=number, path=_path(Path(folder), group, number, arguments.seed), seed=arguments.seed
            )
            for group, count in groups.items()
            for number in range(count)
        ]
        plans += [
            Plan(group="given", number=number, path=path, seed=arguments.seed + repeat, given=True)
            for repeat in range(4)
            for number, path in enumerate(arguments.others)
        ]
        verdicts = evaluate(family, plans)
    found = summary(verdicts)
    for group, kinds in found.items():
        print(f"\n{group}")
        for kind, values in sorted(kinds.items(), key=lambda item: (item[0] == "all", item[0])):
            print(
                f"  {kind:<12} {values['right']:>5.0f} of {values['asked']:>5.0f}  {values['share']:7.2%}"
                f"  ({values['low']:.1%} to {values['high']:.1%})"
            )
    for verdict in [verdict for verdict in verdicts if not verdict.right][: arguments.wrong]:
        exchange = verdict.exchange
        print(f"[{verdict.group}, {exchange.kind}] {exchange.question!r}: {verdict.said!r}, not {exchange.answer!r}")
    print(json.dumps({"evaluation": found, "clips": arguments.clips, "seed": arguments.seed}))


def _path(folder: Path, group: str, number: int, seed: int) -> Path:
    form = draw_format(Random(f"{seed}:{group}:{number}"))
    suffix = Format(codec=UNSEEN_FORMATS[number % len(UNSEEN_FORMATS)][0], width=0, height=0).suffix
    return folder / f"{group.replace(' ', '-')}-{number}{suffix if group == 'unseen' else form.suffix}"


if __name__ == "__main__":
    main()
