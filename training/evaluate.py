"""Asks the default model about new clips in real files, and counts the right answers.

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
from training.scenes import Scene, draw_scene

SEED = 20261122
"""Different from the seeds that the model was trained on."""
UNSEEN_FORMATS = (
    ("mpeg2", 720, 406, 30000 / 1001),
    ("vp8", 96, 150, 7.5),
    ("mpeg2", 160, 720, 24000 / 1001),
    ("vp8", 1024, 576, 48.0),
)
"""Codecs, sizes and frame rates that were not used in training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One clip, the questions of one dialogue about it, and the group that it is counted in."""

    group: str
    clip: Clip
    encoded: EncodedClip
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedAnswer:
    """One question, the model's answer, and whether it is right."""

    group: str
    exchange: Exchange
    given: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is right."""
        return self.exchange.is_right(self.given)


def answer_all(family: Family, asked: Sequence[tuple[Conversation, EncodedClip]], *, batch: int = 16) -> list[str]:
    """Return the model's answer to every conversation, `batch` of them at a time."""
    offline = Offline(family, max_num_seqs=batch)
    given: dict[str, str] = defaultdict(str)
    for number, (conversation, clip) in enumerate(asked):
        offline.add(str(number), conversation, [clip])
    for output in offline.outputs():
        given[output.request_id] += output.text
    return [given[str(number)].strip() for number in range(len(asked))]


def judge(family: Family, cases: Sequence[Case]) -> Iterator[JudgedAnswer]:
    """Run every dialogue with the model's own answers as its history, and judge each answer."""
    histories: list[list[Turn]] = [[] for _ in cases]
    for turn in range(max((len(case.exchanges) for case in cases), default=0)):
        talking = [
            (case, history) for case, history in zip(cases, histories, strict=True) if turn < len(case.exchanges)
        ]
        for case, history in talking:
            history.append(Turn(role="user", text=case.exchanges[turn].question))
        asked = [(Conversation(clips=(case.clip,), turns=tuple(history)), case.encoded) for case, history in talking]
        for (case, history), given in zip(talking, answer_all(family, asked), strict=True):
            history.append(Turn(role="assistant", text=given))
            yield JudgedAnswer(group=case.group, exchange=case.exchanges[turn], given=given)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedClip:
    """One clip to draw, write and ask about; a given one is an existing file."""

    group: str
    number: int
    path: Path
    seed: int
    given: bool = False


def write(planned: PlannedClip) -> None:
    """Draw a clip and write its file."""
    random = Random(f"{planned.seed}:{planned.group}:{planned.number}")
    form = draw_format(random)
    if planned.group == "other":
        count, fps = random.randint(8, 60), random.choice((10.0, 25.0))
        pictures = draw_distractor(random, num_frames=count, width=form.width, height=form.height)
        write_pictures(pictures, form, planned.path, fps=fps)
        return
    scene = scene_of(planned)
    if planned.group == "unseen":
        codec, width, height, fps = UNSEEN_FORMATS[planned.number % len(UNSEEN_FORMATS)]
        form, scene = Format(codec=codec, width=width, height=height), replace(scene, fps=fps)
    write_scene(scene, form, planned.path)


def scene_of(planned: PlannedClip) -> Scene:
    """Return the scene of a clip."""
    scene = draw_scene(Random(f"{planned.seed}:{planned.group}:{planned.number}:scene"))
    if planned.group != "unseen":
        return scene
    return replace(scene, fps=UNSEEN_FORMATS[planned.number % len(UNSEEN_FORMATS)][3])


def cases_of(planned: PlannedClip, family: Family) -> Iterator[Case]:
    """Yield every kind of question about a clip, each in its own conversation, and one long dialogue."""
    clip, encoded = watch(family, planned.path)
    random = Random(f"{planned.seed}:{planned.group}:{planned.number}:questions")
    if planned.group in ("other", "given"):
        yield Case(group=planned.group, clip=clip, encoded=encoded, exchanges=tuple(draw_dialogue(random, None, 5)))
        return
    scene = scene_of(planned)
    for kind in KINDS:
        if kind != "other_clip" and (exchanges := ask(random, scene, kind)):
            yield Case(group=planned.group, clip=clip, encoded=encoded, exchanges=tuple(exchanges))
    long = tuple(draw_dialogue(random, scene, 10))
    yield Case(group=f"{planned.group}, long", clip=clip, encoded=encoded, exchanges=long)


def interval(right: int, asked: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a share."""
    if not asked:
        return 0.0, 1.0
    z, share = 1.96, right / asked
    middle = (share + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z / (1 + z * z / asked) * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return middle - half, middle + half


def summary(judged: Iterable[JudgedAnswer]) -> dict[str, dict[str, dict[str, float]]]:
    """Count answers by group and kind, and over all kinds: asked, right, the share, and its interval."""
    counted: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for answer in judged:
        for name in (answer.exchange.kind, "all"):
            counted[answer.group][name].append(answer.is_right)
    return {group: {kind: _share(right) for kind, right in kinds.items()} for group, kinds in counted.items()}


def _share(right: Sequence[bool]) -> dict[str, float]:
    low, high = interval(sum(right), len(right))
    found = {"asked": len(right), "right": sum(right), "share": sum(right) / len(right), "low": low, "high": high}
    return {name: round(value, 4) for name, value in found.items()}


def evaluate(family: Family, clips: Sequence[PlannedClip]) -> list[JudgedAnswer]:
    """Draw every clip, encode it, and run the dialogues about it."""
    drawn = [planned for planned in clips if not planned.given]
    with ProcessPoolExecutor() as pool:
        for _ in tqdm(pool.map(write, drawn), desc="clips", total=len(drawn), unit="clip"):
            pass
    cases = [case for planned in tqdm(clips, desc="watching", unit="clip") for case in cases_of(planned, family)]
    total = sum(len(case.exchanges) for case in cases)
    return list(tqdm(judge(family, cases), desc="asking", total=total, unit="question"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument(
        "others", nargs="*", type=Path, help="other videos, which the model should recognise as unknown"
    )
    parser.add_argument("--clips", type=int, default=150, help="held-out clips; the other groups have a third as many")
    parser.add_argument(
        "--checkpoint", type=Path, default=None, help="a checkpoint folder (default: the one that ships)"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--wrong", type=int, default=0, help="wrong answers to print")
    arguments = parser.parse_args()
    family = load_family("videochat", checkpoint=arguments.checkpoint)
    with tempfile.TemporaryDirectory(prefix="reeltalk-evaluate-") as folder:
        groups = {"held out": arguments.clips, "unseen": -(-arguments.clips // 3), "other": -(-arguments.clips // 3)}
        clips = [
            PlannedClip(
                group=group, number=number, path=_path(Path(folder), group, number, arguments.seed), seed=arguments.seed
            )
            for group, count in groups.items()
            for number in range(count)
        ]
        clips += [
            PlannedClip(group="given", number=number, path=path, seed=arguments.seed + repeat, given=True)
            for repeat in range(4)
            for number, path in enumerate(arguments.others)
        ]
        judged = evaluate(family, clips)
    found = summary(judged)
    for group, kinds in found.items():
        print(f"\n{group}")
        for kind, values in sorted(kinds.items(), key=lambda item: (item[0] == "all", item[0])):
            print(
                f"  {kind:<12} {values['right']:>5.0f} of {values['asked']:>5.0f}  {values['share']:7.2%}"
                f"  ({values['low']:.1%} to {values['high']:.1%})"
            )
    for answer in [answer for answer in judged if not answer.is_right][: arguments.wrong]:
        exchange = answer.exchange
        print(f"[{answer.group}, {exchange.kind}] {exchange.question!r}: {answer.given!r}, not {exchange.answer!r}")
    print(json.dumps({"evaluation": found, "clips": arguments.clips, "seed": arguments.seed}))


def _path(folder: Path, group: str, number: int, seed: int) -> Path:
    form = draw_format(Random(f"{seed}:{group}:{number}"))
    suffix = Format(codec=UNSEEN_FORMATS[number % len(UNSEEN_FORMATS)][0], width=0, height=0).suffix
    return folder / f"{group.replace(' ', '-')}-{number}{suffix if group == 'unseen' else form.suffix}"


if __name__ == "__main__":
    main()
