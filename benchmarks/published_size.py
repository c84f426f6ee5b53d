"""`published-size FOLDER`: measure the published 7B geometry from file to first token, and its peak memory.

Writes a checkpoint folder of random 16-bit weights in the published sizes (15 GiB), as `reeltalk convert` does, and
loads it in 16 bits, int8 and int4, each in its own process. On the CPU, memory is all resident memory of the
process, including mapped weights. If the system supports it, the files are removed from the page cache first, so that
loading reads the disk.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import show
from model.checkpoints.folder import Checkpoint, read_record, write_folder
from model.families.videochat.family import DEFAULT_CHECKPOINT
from model.families.videochat.network import VideoChatConfig, VideoChatNetwork
from model.families.videochat.published import PUBLISHED_7B

ROOT = Path(__file__).parents[1]
GIB = 1024**3
GOALS = {"16-bit": 15.8, "int8": 9.5, "int4": 7.0}
"""The maximum peak memory in GiB. The original needs 18,850 MiB."""
SHARD_BYTES = GIB // 2
"""The size of a shard; small, because a shard is built in memory."""
SPREAD = 0.02
"""The standard deviation of the random weights, as in the initialisation of a LLaMA by transformers."""


def main() -> int:
    """Write the folder if it does not exist, measure and print; returns 1 if a setting exceeds its goal."""
    arguments = _parser().parse_args()
    config = cut(PUBLISHED_7B, depth=arguments.depth)
    if not is_written(arguments.folder, config):
        write(arguments.folder, config, dtype=getattr(torch, arguments.dtype))
    results = {}
    for setting in arguments.settings:
        results[setting] = run(arguments.folder, setting, device=arguments.device, dtype=arguments.dtype)
        _show(setting, results[setting])
    if arguments.remove:
        shutil.rmtree(arguments.folder)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    summary = {"benchmark": "published-size", "machine": machine, "device": arguments.device, "dtype": arguments.dtype}
    print(json.dumps(summary | {"decoder_depth": config.decoder.depth} | results))
    return int(any(result["peak"] > GOALS[setting] * GIB for setting, result in results.items()))


def cut(config: VideoChatConfig, *, depth: int) -> VideoChatConfig:
    """Keep only the first `depth` blocks of the language model."""
    return replace(config, decoder=replace(config.decoder, depth=depth))


def is_written(folder: Path, config: VideoChatConfig) -> bool:
    """Whether the folder exists; exits if its model has other sizes."""
    record = read_record(folder)
    if record is not None and record["sizes"] != config.to_json():
        sys.exit(f"{folder} contains a model of other sizes; name another folder.")
    return record is not None


def write(folder: Path, config: VideoChatConfig, *, dtype: torch.dtype) -> None:
    """Write a checkpoint folder of random weights, one small shard after another."""
    tensors = random_tensors(config)
    total = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder.parent).free < total + 4 * SHARD_BYTES:
        sys.exit(f"{folder.parent} has not enough free space for {total / GIB:.1f} GiB.")
    print(f"Writing {total / GIB:.2f} GiB of random weights to {folder}.", file=sys.stderr)
    checkpoint = Checkpoint(
        family="videochat",
        sizes=config.to_json(),
        tensors=tensors,
        dtype=dtype,
        beside={"tokenizer.model": DEFAULT_CHECKPOINT / "tokenizer.model"},
    )
    write_folder(folder, checkpoint, origin="random", report=lambda _done, _total: None, limit=SHARD_BYTES)


def random_tensors(config: VideoChatConfig) -> dict[str, Tensor]:
    """Create nonzero float32 values for every parameter: 1 for norm weights, views of one random pool for others."""
    with torch.device("meta"):
        parameters = dict(VideoChatNetwork(config).named_parameters())
    largest = max(parameter.numel() for parameter in parameters.values())
    pool = torch.randn(largest + len(parameters), generator=torch.Generator().manual_seed(0)) * SPREAD
    ones = torch.ones(max(parameter.numel() for parameter in parameters.values() if parameter.ndim == 1))
    return {
        name: (ones if parameter.ndim == 1 and name.endswith("weight") else pool[at:])[: parameter.numel()].view(
            parameter.shape
        )
        for at, (name, parameter) in enumerate(parameters.items())
    }


def run(folder: Path, setting: str, *, device: str, dtype: str) -> dict[str, Any]:
    """Run `first_token` in a separate process, after removing the files from the page cache."""
    _evict(folder)
    options = ["--device", device, "--dtype", dtype, *([] if setting == "16-bit" else ["--quantize", setting])]
    command = [sys.executable, "-m", "benchmarks.first_token", str(folder.resolve()), *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{setting} cannot be measured; see above.")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _evict(folder: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _show(setting: str, measured: dict[str, Any]) -> None:
    rows = [
        [phase["name"], f"{phase['seconds']:.2f}", f"{phase['resident'] / GIB:.2f}", f"{phase['private'] / GIB:.2f}"]
        for phase in measured["phases"]
    ]
    shapes = " -> ".join(map(str, measured["shapes"]))
    title = f"{setting}: {shapes}, a prompt of {measured['num_prompt_tokens']} tokens, token {measured['token_id']}"
    show(title, ("phase", "seconds", "GiB resident", "GiB private"), rows)
    print(f"peak {measured['peak'] / GIB:.2f} GiB, goal {GOALS[setting]} GiB", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks published-size")
    parser.add_argument("folder", type=Path, help="the folder of the weights; written if it does not exist")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--settings", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--depth", type=int, default=PUBLISHED_7B.decoder.depth, help="blocks of the language model")
    parser.add_argument("--remove", action="store_true", help="remove the folder when done")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
