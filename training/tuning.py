"""Stages 2 and 3: the language model learns to speak about what the encoder sees, in dialogues of many turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from model.families.videochat.network import VideoChatNetwork
from model.text.tokenizer import Tokenizer
from training.augment import normalised, relight, turn
from training.corpus import label
from training.dense import Training
from training.dialogues import ELSEWHERE, Exchange, draw_dialogue
from training.loop import Schedule, learn
from training.pointing import LOOKING, Glance, astray, glances, looking
from training.prompts import Example, clip_of, conversation_about, example
from training.supervision import fast_convolutions, tell, understand, watched
from training.world import FPS, Scene

TURNS = (6, 14)
SYSTEMS = ("", "You are a helpful assistant.", "Answer briefly.", "You watch videos and answer questions about them.")
CROWDS = (0.6, 0.5, 1.0, 1.5)
"""How often clips of so many things are spoken of: there is nothing to mistake where there is only one."""
LOOKS = 0.2
"""What looking astray counts beside a wrong word."""
NO_CLIP = 0.03
"""Share of dialogues without a video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Dialogues of one length, padded at the end."""

    tokens: Tensor  # [B, L]
    said: Tensor  # [B, L]: whether the model says the token
    video_at: tuple[int | None, ...]
    """Where the video tokens of each dialogue go in, if it has any."""
    glances: tuple[tuple[Glance, ...], ...]
    """Where to look at each word of each dialogue."""


def draw_batch(random: Random, tokenizer: Tokenizer, scenes: Sequence[Scene | None]) -> Batch:
    """One dialogue about each clip, all of the same number of questions."""
    turns = random.randint(*TURNS)
    return _padded([_draw_example(random, tokenizer, scene, turns) for scene in scenes])


def _draw_example(
    random: Random, tokenizer: Tokenizer, scene: Scene | None, turns: int
) -> tuple[Example, tuple[Glance, ...]]:
    exchanges = draw_dialogue(random, scene, turns)
    clip = clip_of(scene, seconds=random.uniform(0.5, 40), fps=random.choice(FPS))
    system = random.choice(SYSTEMS) if random.random() < 0.1 else ""
    if random.random() < NO_CLIP:
        silent = [Exchange(kind="off_topic", question=exchange.question, answer=ELSEWHERE) for exchange in exchanges]
        return example(tokenizer, conversation_about(None, silent, system=system)), ()
    one = example(tokenizer, conversation_about(clip, exchanges, system=system))
    return one, tuple(glances(tokenizer, one, exchanges))


def _padded(drawn: Sequence[tuple[Example, tuple[Glance, ...]]]) -> Batch:
    examples = [one for one, _ in drawn]
    length = max(len(one.before) + len(one.after) for one in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    said = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, one in enumerate(examples):
        ids = (*one.before, *one.after)
        tokens[row, : len(ids)] = torch.tensor(ids)
        said[row, len(one.before) : len(ids)] = torch.tensor(one.said)
    video_at = tuple(len(one.before) or None for one in examples)
    return Batch(tokens=tokens, said=said, video_at=video_at, glances=tuple(glances for _, glances in drawn))


def speak(network: VideoChatNetwork, batch: Batch, features: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of what the model says about features [B, queries, C]; the share of answers all right, and its parts."""
    llama = network.llama_model
    embedded = llama.model.embed_tokens(batch.tokens)  # [B, L, hidden]
    video = network.project(features)  # [B, queries, hidden]
    gap = video.shape[1]
    rows, said, wanted = [], [], []
    for row, place in enumerate(batch.video_at):
        # Without a video the row is padded at its end, where nothing is said.
        at = embedded.shape[1] if place is None else place
        rows.append(torch.cat((embedded[row, :at], video[row], embedded[row, at:])))
        nothing = batch.said.new_zeros(gap)
        said.append(torch.cat((batch.said[row, :at], nothing, batch.said[row, at:])))
        wanted.append(torch.cat((batch.tokens[row, :at], nothing.long(), batch.tokens[row, at:])))
    with looking(llama) as looks:
        hidden = llama.model(inputs_embeds=torch.stack(rows), use_cache=False).last_hidden_state
    asked = torch.stack(said)[:, 1:]
    target = torch.stack(wanted)[:, 1:][asked]
    logits = llama.lm_head(hidden[:, :-1][asked])
    loss = functional.cross_entropy(logits, target)
    shown = {"answers": _answers_right(asked, logits.argmax(-1) == target)}
    for (name, which), looked_at in zip(LOOKING.items(), _wanted_looks(batch, gap), strict=True):
        if len(looked_at):
            off = astray(llama, looks, which, looked_at)
            shown[name] = off.item()
            loss = loss + LOOKS * off
    return loss, shown


def _wanted_looks(batch: Batch, gap: int) -> tuple[Tensor, Tensor]:
    """Row, position, position looked at, number of those, for all that look at things and all that look at times."""
    things, times = [], []
    for row, (at, looks) in enumerate(zip(batch.video_at, batch.glances, strict=True)):
        for glance in looks:
            assert at is not None, "there is something to look at"
            place = at + gap + glance.place
            if glance.times:
                times += [(row, place, at + gap + time, len(glance.times)) for time in glance.times]
            else:
                places = [at + colour for colour in glance.colours] or [0]
                things += [(row, place, looked, len(places)) for looked in places]
    return torch.tensor(things), torch.tensor(times)


def _answers_right(asked: Tensor, right: Tensor) -> float:
    """Share of runs of `asked` [B, L] of which every token is `right` [tokens asked for]."""
    starts = asked & ~functional.pad(asked, (1, 0))[:, :-1]
    number = starts.flatten().cumsum(0)[asked.flatten()] - 1
    answers = int(starts.sum())
    wrong = torch.zeros(answers).index_add_(0, number, (~right).float())
    return float((wrong == 0).float().mean())


def learn_to_speak(training: Training, schedule: Schedule) -> None:
    """Train projection and language model on what encoder and queries, left as they are, make of the clips."""
    network = training.network
    scenes = training.corpus.scenes()
    likely = [CROWDS[len(scene.things) if scene else 0] for scene in scenes]
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
    """The running averages, with one step more."""
    for name, value in shown.items():
        averages[name] = 0.95 * averages.get(name, value) + 0.05 * value
    return averages


def learn_jointly(training: Training, schedule: Schedule) -> None:
    """Train everything at once, from pixels to answers, the heads still watching."""
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
        features = network.encode(relight(normalised(clips), generator))
        watching = (*understand(heads, labels, seen).losses.values(), *tell(heads, labels, features).losses.values())
        loss, right = speak(network, draw_batch(random, training.tokenizer, shown), features)
        return loss + 0.1 * torch.stack(watching).sum(), _averaged(averages, right)

    parts = nn.ModuleDict({"network": network, "heads": heads})
    with fast_convolutions(network), watched(network) as seen:
        learn("joint", parts, step, schedule, training.folder)
