"""Trains the default model from nothing: `python -m training.train`.

All random numbers follow from one seed. An interrupted run resumes where it stopped: finished clips, the vocabulary and
the state of every stage are in the work folder. A run takes about two hours on two CPU cores.
"""

import argparse
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from model.families.videochat.network import QFormerConfig, VideoChatConfig, VideoChatNetwork
from model.families.videochat.vision import VisionConfig
from model.networks.llama import DecoderConfig
from model.text.sentencepiece import read_sentencepiece
from training.corpus import PIXELS, Corpus
from training.dense import Training, learn_to_look, learn_to_tell, learn_to_understand
from training.loop import StageSchedule
from training.scenes import NUM_SAMPLED
from training.supervision import Heads
from training.tuning import learn_jointly, learn_to_speak
from training.vocabulary import learn_pieces, tokenizer_file

WEIGHTS = Path(__file__).parents[1] / "model" / "tiny" / "weights"
"""The folder of the trained model in the package."""
SEED, CLIPS = 1, 16_000
GENERATION = {"do_sample": False, "max_new_tokens": 256, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The seed, the number of clips, and the schedule of each stage."""

    seed: int = SEED
    clips: int = CLIPS
    look: StageSchedule = field(default_factory=lambda: StageSchedule(steps=1000, batch=64, learning_rate=3e-3))
    understand: StageSchedule = field(default_factory=lambda: StageSchedule(steps=2000, batch=16, learning_rate=2e-3))
    tell: StageSchedule = field(default_factory=lambda: StageSchedule(steps=1200, batch=32, learning_rate=2e-3))
    speak: StageSchedule = field(default_factory=lambda: StageSchedule(steps=3000, batch=16, learning_rate=3e-3))
    joint: StageSchedule = field(
        default_factory=lambda: StageSchedule(steps=120, batch=12, learning_rate=1e-4, warm_up=20)
    )


def sizes(vocab_size: int) -> VideoChatConfig:
    """Return small sizes with every module of the architecture."""
    return VideoChatConfig(
        num_frames=NUM_SAMPLED,
        vision=VisionConfig(
            image_size=PIXELS.size, patch_size=8, width=128, depth=4, num_heads=8, num_global_blocks=2, mlp_ratio=2.0
        ),
        qformer=QFormerConfig(width=128, depth=4, num_heads=4, mlp_width=256),
        decoder=DecoderConfig(vocab_size=vocab_size, width=192, depth=4, num_heads=4, mlp_width=512),
    )


def fresh(config: VideoChatConfig, seed: int) -> tuple[VideoChatNetwork, Heads]:
    """Build an untrained network and its heads."""
    torch.manual_seed(seed)
    network = VideoChatNetwork(config)
    # With a token of zeros and blocks that add nothing, learning would start very slowly.
    nn.init.trunc_normal_(network.visual_encoder.gmhra_cls_token, std=0.5)
    for name, parameter in network.visual_encoder.gmhra.named_parameters():
        if name.endswith(("out_proj.weight", "c_proj.weight")):
            nn.init.trunc_normal_(parameter, std=0.02)
    return network, Heads(network)


def train(recipe: Recipe, work: Path, out: Path) -> None:
    """Run every unfinished stage, and write the model to a checkpoint folder."""
    corpus = Corpus(folder=work / "clips", seed=recipe.seed, count=recipe.clips)
    corpus.draw()
    vocabulary = work / "tokenizer.model"
    if not vocabulary.exists():
        vocabulary.write_bytes(tokenizer_file(learn_pieces(recipe.seed)))
    tokenizer = read_sentencepiece(vocabulary)
    config = sizes(tokenizer.vocab_size)
    network, heads = fresh(config, recipe.seed)
    training = Training(network=network, heads=heads, tokenizer=tokenizer, corpus=corpus, folder=work)
    learn_to_look(training, recipe.look)
    learn_to_understand(training, recipe.understand)
    learn_to_tell(training, recipe.tell)
    learn_to_speak(training, recipe.speak)
    learn_jointly(training, recipe.joint)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(f"{json.dumps(config.to_json(), indent=2)}\n")
    (out / "generation_config.json").write_text(f"{json.dumps(GENERATION, indent=2)}\n")
    shutil.copyfile(vocabulary, out / "tokenizer.model")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train the default model.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder for clips and states")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--clips", type=int, default=CLIPS)
    arguments = parser.parse_args()
    train(replace(Recipe(), seed=arguments.seed, clips=arguments.clips), arguments.work, arguments.out)


if __name__ == "__main__":
    main()
