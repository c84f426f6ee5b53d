"""Runs `reeltalk models known`: the published checkpoints that can be converted and served. Imports torch."""

from dataclasses import asdict
from typing import Any

import torch

from model.checkpoints.catalogue import PublishedCheckpoint
from model.families import family_module, published_checkpoints
from model.memory_estimate import ValueCounts, estimate_memory
from model.weight_bits import Quantization
from service.terminal.printing import print_json, print_note, print_table

_GIB = 1024**3
_FORMATS: dict[str, Quantization | None] = {"float16": None, "int8": "int8", "int4": "int4"}
_TITLES = ("name", "family", "size", *_FORMATS, "repository", "licence")


def print_known(*, as_json: bool) -> None:
    """Print a table of all published checkpoints; with `as_json` one JSON document."""
    known = [_described(family, each) for family, releases in published_checkpoints().items() for each in releases]
    if as_json:
        print_json({"object": "list", "data": known})
        return
    print_table(_TITLES, [_row(each) for each in known])
    print_note(
        "GPU memory in GiB, by the format of the language model: the weights, one conversation of full length, and the "
        "encoding of one clip. `reeltalk pull NAME` downloads what is on the Hub."
    )


def _described(family: str, checkpoint: PublishedCheckpoint) -> dict[str, Any]:
    counts = family_module(family).value_counts(checkpoint.size)
    memory = {name: _num_bytes(counts, quantization) for name, quantization in _FORMATS.items()}
    return {**asdict(checkpoint), "family": family, "memory_bytes": memory}


def _num_bytes(counts: ValueCounts, quantization: Quantization | None) -> int:
    """Bytes of the weights, of one conversation of full length, and of the encoding of one clip."""
    memory = estimate_memory(counts, torch.float16, quantization)
    conversation = memory.kv_bytes_per_token * counts.max_model_len
    return memory.weight_bytes + conversation + memory.encoder_bytes_per_clip


def _row(known: dict[str, Any]) -> tuple[str, ...]:
    return (
        known["name"],
        known["family"],
        known["size"],
        *(f"{num_bytes / _GIB:.1f}" for num_bytes in known["memory_bytes"].values()),
        " ".join(known["repositories"].values()) or "not on the Hub",
        known["licence"],
    )
