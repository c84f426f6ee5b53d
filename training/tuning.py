"""Stages 4 and 5: train the language model on dialogues about the features, then all modules together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from model.families.videochat.network import VideoChatNetwork
from model.features import VIDEO
from model.text.tokenizer import Tokenizer
from training.augment import normalised, relight, turn
from training.corpus import label
from training.dense import Training
from training.dialogues import UNKNOWN, Exchange, draw_dialogue
from training.loop import StageSchedule, learn
from training.pointing import SUPERVISED_HEADS, AttentionTarget, attention_loss, attention_targets, recorded_projections
from training.prompts import Example, clip_of, conversation_about, example
from training.scenes import FPS, Scene
from training.supervision import fast_convolutions, recorded_outputs, tell, understand

TURNS = (6, 14)
SYSTEMS = ("", "You are a helpful assistant.", "Answer briefly.", "You watch videos and answer questions about them.")
COUNT_WEIGHTS = (0.6, 0.5, 1.0, 1.5)
"""Relative frequency of clips with 0 to 3 things; clips with one thing are easy and therefore rarer."""
ATTENTION_WEIGHT = 0.2
"""Weight of the attention loss relative to the loss of the words."""
NO_CLIP = 0.03
"""Share of dialogues without a video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Dialogues of one length, padded at the end."""

    tokens: Tensor  # [B, L]
    is_answer: Tensor  # [B, L]: whether the token belongs to an answer
    video_at: tuple[int | None, ...]
    """The position of the video tokens in each dialogue; None without a video."""
    attention_targets: tuple[tuple[AttentionTarget, ...], ...]
    """For each word of each answer of each dialogue."""


def draw_batch(random: Random, tokenizer: Tokenizer, scenes: Sequence[Scene | None]) -> Batch:
    """Draw one dialogue about each clip, all with the same number of questions."""
    turns = random.randint(*TURNS)
    return _padded([_draw_example(random, tokenizer, scene, turns) for scene in scenes])


def _draw_example(
    random: Random, tokenizer: Tokenizer, scene: Scene | None, turns: int
) -> tuple[Example, tuple[AttentionTarget, ...]]:
    exchanges = draw_dialogue(random, scene, turns)
    clip = clip_of(scene, seconds=random.uniform(0.5, 40), fps=random.choice(FPS))
    system = random.choice(SYSTEMS) if random.random() < 0.1 else ""
    if random.random() < NO_CLIP:
        silent = [Exchange(kind="off_topic", question=exchange.question, answer=UNKNOWN) for exchange in exchanges]
        return example(tokenizer, conversation_about(None, silent, system=system)), ()
    one = example(tokenizer, conversation_about(clip, exchanges, system=system))
    return one, tuple(attention_targets(tokenizer, one, exchanges))


def _padded(drawn: Sequence[tuple[Example, tuple[AttentionTarget, ...]]]) -> Batch:
    examples = [one for one, _ in drawn]
    length = max(len(one.before) + len(one.after) for one in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    is_answer = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, one in enumerate(examples):
        ids = (*one.before, *one.after)
        tokens[row, : len(ids)] = torch.tensor(ids)
        is_answer[row, len(one.before) : len(ids)] = torch.tensor(one.is_answer)
    video_at = tuple(len(one.before) or None for one in examples)
    return Batch(
        tokens=tokens, is_answer=is_answer, video_at=video_at, attention_targets=tuple(targets for _, targets in drawn)
    )


def speak(network: VideoChatNetwork, batch: Batch, features: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of the answers given features [B, queries, C]; the share of right answers and its parts."""
    llama = network.llama_model
    embedded = llama.model.embed_tokens(batch.tokens)  # [B, L, hidden]
    video = network.project(VIDEO, features)  # [B, queries, hidden]
    gap = video.shape[1]
    rows, is_answer, wanted = [], [], []
    for row, position in enumerate(batch.video_at):
        # Without a video, the row is padded at its end, where there is no answer.
        at = embedded.shape[1] if position is None else position
        rows.append(torch.cat((embedded[row, :at], video[row], embedded[row, at:])))
        nothing = batch.is_answer.new_zeros(gap)
        is_answer.append(torch.cat((batch.is_answer[row, :at], nothing, batch.is_answer[row, at:])))
        wanted.append(torch.cat((batch.tokens[row, :at], nothing.long(), batch.tokens[row, at:])))
    with recorded_projections(llama) as recorded:
        hidden = llama.model(inputs_embeds=torch.stack(rows), use_cache=False).last_hidden_state
    asked = torch.stack(is_answer)[:, 1:]
    target = torch.stack(wanted)[:, 1:][asked]
    logits = llama.lm_head(hidden[:, :-1][asked])
    loss = functional.cross_entropy(logits, target)
    shown = {"answers": _answers_right(asked, logits.argmax(-1) == target)}
    for (name, which), positions in zip(SUPERVISED_HEADS.items(), _target_positions(batch, gap), strict=True):
        if len(positions):
            attention = attention_loss(llama, recorded, which, positions)
            shown[name] = attention.item()
            loss = loss + ATTENTION_WEIGHT * attention
    return loss, shown


def _target_positions(batch: Batch, gap: int) -> tuple[Tensor, Tensor]:
    """Return row, position, target position and number of targets, for the heads of things and of times."""
    things, times = [], []
    for row, (at, targets) in enumerate(zip(batch.video_at, batch.attention_targets, strict=True)):
        for target in targets:
            assert at is not None, "only dialogues with a video have targets"
            position = at + gap + target.position
            if target.times:
                times += [(row, position, at + gap + time, len(target.times)) for time in target.times]
            else:
                positions = [at + colour for colour in target.colours] or [0]
                things += [(row, position, wanted, len(positions)) for wanted in positions]
    return torch.tensor(things), torch.tensor(times)


def _answers_right(asked: Tensor, right: Tensor) -> float:
    """Return the share of runs of `asked` [B, L] in which every token is `right` [number of asked tokens]."""
    starts = asked & ~functional.pad(asked, (1, 0))[:, :-1]
    number = starts.flatten().cumsum(0)[asked.flatten()] - 1
    answers = int(starts.sum())
    wrong = torch.zeros(answers).index_add_(0, number, (~right).float())
    return float((wrong == 0).float().mean())


def learn_to_speak(training: Training, schedule: StageSchedule) -> None:
    """Train the projection and the language model on features of the frozen encoder and queries."""
    network = training.network
    scenes = training.corpus.scenes()
    likely = [COUNT_WEIGHTS[len(scene.things) if scene else 0] for scene in scenes]
    averages: dict[str, float] = {}

    def step(number: int) -> tuple[Tensor, Mapping[str, float]]:
        random = Random(f"{training.corpus.seed}:{number}:speak")
        rows = random.choices(range(len(scenes)), likely, k=schedule.batch)
        batch = draw_batch(random, training.tokenizer, [scenes[row] for row in rows])
        loss, shown = speak(network, batch, training.features[rows].float())
        return loss, _averaged(averages, shown)

    parts = nn.ModuleDict({"llama_model": network.llama_model, "llama_proj": network.llama_proj})
    learn("speak", parts, step, schedule, training.folder)


def _averaged(averages: dict[str, float], shown: Mapping[str, float]) -> dict[str, float]:
    """Update and return the running averages."""
    for name, value in shown.items():
        averages[name] = 0.95 * averages.get(name, value) + 0.05 * value
    return averages


def learn_jointly(training: Training, schedule: StageSchedule) -> None:
    """Train all modules at once, from pixels to answers, still with the losses of the heads."""
    network, heads, corpus = training.network, training.heads, training.corpus
    frames, scenes = torch.from_numpy(corpus.frames()), corpus.scenes()
    averages: dict[str, float] = {}

    def step(number: int) -> tuple[Tensor, Mapping[str, float]]:
        random = Random(f"{corpus.seed}:{number}:joint")
        generator = Generator().manual_seed(random.getrandbits(60))
        rows = [random.randrange(len(scenes)) for _ in range(schedule.batch)]
        clips, shown = turn(frames[rows], [scenes[row] for row in rows], random)
        labels = label(shown)
        seen.clear()
        features = network.encode(relight(normalised(clips), generator))[VIDEO]
        watching = (*understand(heads, labels, seen).losses.values(), *tell(heads, labels, features).losses.values())
        loss, right = speak(network, draw_batch(random, training.tokenizer, shown), features)
        return loss + 0.1 * torch.stack(watching).sum(), _averaged(averages, right)

    parts = nn.ModuleDict({"network": network, "heads": heads})
    with fast_convolutions(network), recorded_outputs(network) as seen:
        learn("joint", parts, step, schedule, training.folder)
