"""Stage 1: the encoder learns to see, every part of it under the eyes of a head that is thrown away."""

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
from training.loop import Schedule, learn
from training.supervision import Heads, Score, Seen, fast_convolutions, look, tell, understand, watched
from training.world import NUM_SAMPLED

WEIGHTS = {"patch": 0.7, "frame": 0.7, "keys": 1.5, "token.motion": 2.0, "token.event": 0.3, "slot.motion": 2.0}
BLINKERED = 0.5
"""Share of the last stage in which every other step hides the patches from the queries."""
SHOWN = ("patch.shape", "keys.1", "token.motion", "token.life", "token.event", "slot.motion", "slot.life", "slot.event")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Who learns, from which clips, and where the states of the stages are kept.

    Tokens and features are computed when a stage that is not finished asks for them; the stages before it must be.
    """

    network: VideoChatNetwork
    heads: Heads
    tokenizer: Tokenizer
    corpus: Corpus
    folder: Path

    @cached_property
    def tokens(self) -> Tensor:
        """What the encoder makes of every clip, each in one light: float16 [N, L, C]; kept in the folder."""
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
        """What the queries make of those tokens: float16 [N, queries, C]."""
        with torch.no_grad():
            return torch.cat([self.network.query(part.float()).half() for part in torch.split(self.tokens, 64)])


def learn_to_look(training: Training, schedule: Schedule) -> None:
    """Train the trunk of the encoder, and the heads, on single frames."""
    network, heads = training.network, training.heads

    def read(frames: Tensor, labels: Labels, seen: Seen, generator: Generator) -> Score:
        which = int(torch.randint(frames.shape[1], (), generator=generator))
        pixels = relight(normalised(frames[:, which : which + 1]), generator)
        network.see(pixels)
        return look(heads, _at(labels, which), pixels, seen)

    _learn("look", training, schedule, read)


def learn_to_understand(training: Training, schedule: Schedule) -> None:
    """Train the encoder from the first block that the global token sees, and the heads, on whole clips."""
    network, heads = training.network, training.heads

    def read(frames: Tensor, labels: Labels, seen: Seen, generator: Generator) -> Score:
        network.see(relight(normalised(frames), generator))
        return understand(heads, labels, seen)

    network.requires_grad_(False)
    trunk = network.visual_encoder
    for part in (trunk.blocks[-len(trunk.gmhra) :], trunk.gmhra, network.ln_vision):
        part.requires_grad_(True)
    trunk.gmhra_cls_token.requires_grad_(True)
    _learn("understand", training, schedule, read)
    network.requires_grad_(True)


def learn_to_tell(training: Training, schedule: Schedule) -> None:
    """Train the queries and the Q-Former, and the heads, on what the encoder, left as it is, makes of the clips."""
    network, heads = training.network, training.heads
    labels = label(training.corpus.scenes())
    averages: dict[str, float] = {}

    def step(number: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = Generator().manual_seed(training.corpus.seed * 1_000_003 + number)
        rows = torch.randint(len(labels), (schedule.batch,), generator=generator)
        shown = training.tokens[rows].float()
        # The global token is one of hundreds that the queries attend to. They find it sooner where now and then
        # nothing but it and the frames' class tokens is left.
        blinkered = number < schedule.steps * BLINKERED and number % 2 == 0
        score = tell(heads, labels[rows], network.query(_without_patches(shown) if blinkered else shown))
        if not blinkered:
            _average(averages, score)
        return _weighed(score), averages

    learn("tell", _named(training, ("qformer",)), step, schedule, training.folder)


def _without_patches(tokens: Tensor) -> Tensor:
    """The class tokens of the frames, and the global token."""
    return torch.cat((tokens[:, : -1 : (tokens.shape[1] - 1) // NUM_SAMPLED], tokens[:, -1:]), dim=1)


Read = Callable[[Tensor, Labels, Seen, Generator], Score]


def _learn(name: str, training: Training, schedule: Schedule, read: Read) -> None:
    corpus = training.corpus
    frames, labels = torch.from_numpy(corpus.frames()), label(corpus.scenes())
    averages: dict[str, float] = {}

    def step(number: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = Generator().manual_seed(corpus.seed * 1_000_003 + number)
        rows = torch.randint(len(labels), (schedule.batch,), generator=generator)
        clips, wanted = vary(frames[rows], labels[rows], generator)
        seen.clear()
        score = read(clips, wanted, seen, generator)
        _average(averages, score)
        return _weighed(score), averages

    learned = _named(training, ("visual_encoder", "ln_vision", "qformer"))
    with fast_convolutions(training.network), watched(training.network) as seen:
        learn(name, learned, step, schedule, training.folder)


def _named(training: Training, parts: Sequence[str]) -> nn.Module:
    """Parts of the network, its queries and the heads, as one module under the network's own names."""
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
    """The labels of one frame of every clip."""
    return replace(
        labels, centre=labels.centre[:, :, frame : frame + 1], visible=labels.visible[:, :, frame : frame + 1]
    )
