"""A model with random weights that never ends an answer, for tests that need long answers."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.families.videochat.family import DEFAULT_CHECKPOINT
from model.families.videochat.network import VideoChatConfig, VideoChatNetwork
from model.weights import seeded

SEED = 20230512


def talkative_checkpoint(folder: Path) -> Path:
    """Write the checkpoint folder of a model that generates random printable text, by default greedily."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.model", "generation_config.json"):
        shutil.copy(DEFAULT_CHECKPOINT / name, folder)
    config = VideoChatConfig.from_json(json.loads((folder / "config.json").read_bytes()))
    with torch.device("meta"):
        network = VideoChatNetwork(config)
    tensors = seeded(network, seed=SEED)
    num_printable = 95  # the last tokens of the vocabulary: single characters, none of which ends an answer
    tensors["llama_model.lm_head.weight"][:-num_printable] *= 0.01
    save_file(tensors, folder / "model.safetensors")
    return folder
