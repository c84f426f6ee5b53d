"""Stages 1 to 3: train the encoder, with heads on every part of it that are discarded after training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from model.families.videochat.network import VideoChatNetwork
from model.text.tokenizer import Tokenizer
from training.augment import normalised, relight, vary
from training.corpus import Corpus, Labels, label
from training.loop import StageSchedule, learn
from training.scenes import NUM_SAMPLED
from training.supervision import (
    EncoderOutputs,
    Heads,
    Score,
    fast_convolutions,
    look,
    recorded_outputs,
    tell,
    understand,
)

WEIGHTS = {"patch": 0.7, "frame": 0.7, "keys": 1.5, "token.motion": 2.0, "token.event": 0.3, "slot.motion": 2.0}
HIDDEN_PATCHES = 0.5
"""Until this share of the steps of stage `tell`, every other step hides the patches from the queries."""
SHOWN = ("patch.shape", "keys.1", "token.motion", "token.life", "token.event", "slot.motion", "slot.life", "slot.event")


@dataclass(frozen=True, kw_only=True)
class Training:
    """The network and heads being trained, the corpus, and the folder with the states of the stages.

    Tokens and features are computed on first use, when all stages before it must have finished.
    """

    network: VideoChatNetwork
    heads: Heads
    tokenizer: Tokenizer
    corpus: Corpus
    folder: Path

    @cached_property
    def tokens(self) -> Tensor:
        """The encoder's tokens of every clip, relit once: float16 [N, L, C]; saved in the folder."""
        path = self.folder / f"tokens-{self.corpus.seed}.pt"
        if path.exists():
            kept: Tensor = torch.load(path, weights_only=True)
            return kept
        frames = torch.from_numpy(self.corpus.frames())
        generator = Generator().manual_seed(self.corpus.seed)
        found = []
        with torch.no_grad():
            for part in tqdm(torch.split(frames, 32), desc="tokens", unit="batch"):
                found.append(self.network.see(relight(normalised(part), generator)).half())
        tokens = torch.cat(found)
        torch.save(tokens, path)
        return tokens

    @cached_property
    def features(self) -> Tensor:
        """The features of those tokens: float16 [N, queries, C]."""
        with torch.no_grad():
            return torch.cat([self.network.query(part.float()).half() for part in torch.split(self.tokens, 64)])


def learn_to_look(training: Training, schedule: StageSchedule) -> None:
    """Train the trunk of the encoder, and the heads, on single frames."""
    network, heads = training.network, training.heads

    def score_clips(frames: Tensor, labels: Labels, seen: EncoderOutputs, generator: Generator) -> Score:
        which = int(torch.randint(frames.shape[1], (), generator=generator))
        pixels = relight(normalised(frames[:, which : which + 1]), generator)
        network.see(pixels)
        return look(heads, _at(labels, which), pixels, seen)

    _train_stage("look", training, schedule, score_clips)


def learn_to_understand(training: Training, schedule: StageSchedule) -> None:
    """Train the encoder from the first block that feeds the global token, and the heads, on whole clips."""
    network, heads = training.network, training.heads

    def score_clips(frames: Tensor, labels: Labels, seen: EncoderOutputs, generator: Generator) -> Score:
        network.see(relight(normalised(frames), generator))
        return understand(heads, labels, seen)

    network.requires_grad_(False)
    trunk = network.visual_encoder
    for part in (trunk.blocks[-len(trunk.gmhra) :], trunk.gmhra, network.ln_vision):
        part.requires_grad_(True)
    trunk.gmhra_cls_token.requires_grad_(True)
    _train_stage("understand", training, schedule, score_clips)
    network.requires_grad_(True)


def learn_to_tell(training: Training, schedule: StageSchedule) -> None:
    """Train the queries, the Q-Former and the heads on the tokens of the frozen encoder."""
    network, heads = training.network, training.heads
    labels = label(training.corpus.scenes())
    averages: dict[str, float] = {}

    def step(number: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = Generator().manual_seed(training.corpus.seed * 1_000_003 + number)
        rows = torch.randint(len(labels), (schedule.batch,), generator=generator)
        shown = training.tokens[rows].float()
        # The global token is one of hundreds that the queries attend to. They learn to use it sooner if some steps
        # leave only the global token and the frames' class tokens.
        hides_patches = number < schedule.steps * HIDDEN_PATCHES and number % 2 == 0
        score = tell(heads, labels[rows], network.query(_without_patches(shown) if hides_patches else shown))
        if not hides_patches:
            _average(averages, score)
        return _weighed(score), averages

    learn("tell", _named(training, ("qformer",)), step, schedule, training.folder)


def _without_patches(tokens: Tensor) -> Tensor:
    """Return the class tokens of the frames, and the global token."""
    return torch.cat((tokens[:, : -1 : (tokens.shape[1] - 1) // NUM_SAMPLED], tokens[:, -1:]), dim=1)


ScoreClips = Callable[[Tensor, Labels, EncoderOutputs, Generator], Score]


def _train_stage(name: str, training: Training, schedule: StageSchedule, score_clips: ScoreClips) -> None:
    corpus = training.corpus
    frames, labels = torch.from_numpy(corpus.frames()), label(corpus.scenes())
    averages: dict[str, float] = {}

    def step(number: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = Generator().manual_seed(corpus.seed * 1_000_003 + number)
        rows = torch.randint(len(labels), (schedule.batch,), generator=generator)
        clips, wanted = vary(frames[rows], labels[rows], generator)
        seen.clear()
        score = score_clips(clips, wanted, seen, generator)
        _average(averages, score)
        return _weighed(score), averages

    learned = _named(training, ("visual_encoder", "ln_vision", "qformer"))
    with fast_convolutions(training.network), recorded_outputs(training.network) as seen:
        learn(name, learned, step, schedule, training.folder)


def _named(training: Training, parts: Sequence[str]) -> nn.Module:
    """Return parts of the network, its queries and the heads as one module, under the network's names."""
    network = training.network
    learned = nn.ModuleDict({part: network.get_submodule(part) for part in parts})
    learned["heads"] = training.heads
    learned.register_parameter("query_tokens", network.query_tokens)
    learned.register_parameter("extra_query_tokens", network.extra_query_tokens)
    return learned


def _average(averages: dict[str, float], score: Score) -> None:
    for field in SHOWN:
        if field in score.right:
            averages[field] = 0.98 * averages.get(field, score.right[field]) + 0.02 * score.right[field]


def _weighed(score: Score) -> Tensor:
    return torch.stack(
        [WEIGHTS.get(field, WEIGHTS.get(field.split(".")[0], 1.0)) * value for field, value in score.losses.items()]
    ).sum()


def _at(labels: Labels, frame: int) -> Labels:
    """Return the labels of one frame of every clip."""
    return replace(
        labels, centre=labels.centre[:, :, frame : frame + 1], visible=labels.visible[:, :, frame : frame + 1]
    )
