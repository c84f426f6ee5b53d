"""`encoder`: measure the time from frames to features, and compare with a direct implementation of the publication.

Sizes are VideoChat's; weights are random, because speed does not depend on their values. Both implementations run
alternately on the same weights and clip, and the benchmark fails if their results differ. Needs only torch,
transformers and safetensors.

The ratio is that of the visual encoder with its norm (frames to 2057 tokens), in float32. All other figures are for the
whole encoder, including the Q-Former. TFLOP/s count the operations of the published arithmetic, also those that our
implementation avoids.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_encoder import plain_tokens
from benchmarks.table import show
from model.families.videochat.network import VideoChatConfig, VideoChatNetwork
from model.families.videochat.published import PUBLISHED_7B
from model.networks.llama import DecoderConfig

TOLERANCE = 2e-5
"""The tolerated difference, as a share of the largest expected value; the same as in `reeltalk verify`."""
BATCHES = (1, 2, 4, 8, 16, 32)
NO_DECODER = DecoderConfig(vocab_size=8, width=64, depth=1, num_heads=1, mlp_width=64)
"""A minimal language model, which this benchmark does not run."""
SHOWN_OPERATIONS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """The seconds of both implementations, the median of the pairs' ratios, and the difference of the results."""

    plain_s: float
    ours_s: float
    ratio: float
    difference: float
    """The largest difference divided by the largest expected value."""


@torch.no_grad()
def main() -> int:
    """Measure and print; returns 1 if the implementations differ."""
    arguments = _parser().parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(arguments.device)
    config = cut(PUBLISHED_7B, depth=arguments.depth)
    network = build(config, device)
    clip = torch.randn(1, arguments.frames, 3, config.vision.image_size, config.vision.image_size, device=device)
    tflop = count_flops(config, num_frames=arguments.frames) / 1e12
    print(f"{_machine(device)}; depth {config.vision.depth}, {arguments.frames} frames, {tflop:.2f} TFLOP a clip")

    ratio = compare(network, clip, repeats=arguments.repeats)
    rows = [["published arithmetic", f"{ratio.plain_s:.3f}"], ["ours", f"{ratio.ours_s:.3f}"]]
    show(f"frames to tokens, float32, medians of {arguments.repeats} pairs", ("", "seconds"), rows)
    print(f"ratio {ratio.ratio:.2f}; largest difference {ratio.difference:.1e} of the largest value")

    shares = operations(lambda: network.encode(clip), device)
    show(
        "time of each operation of this encoder, float32, frames to features",
        ("operation", "ms", "share"),
        _share_rows(shares),
    )
    results = {"ratio": ratio.ratio, "plain_s": ratio.plain_s, "ours_s": ratio.ours_s, "difference": ratio.difference}
    for name in arguments.dtypes if arguments.batches else ():
        network.to(getattr(torch, name))
        times = scaling(network, clip.to(getattr(torch, name)), batches=arguments.batches, repeats=arguments.repeats)
        rows = [
            [str(size), f"{seconds * 1e3:.1f}", f"{seconds * 1e3 / size:.1f}", f"{tflop * size / seconds:.1f}"]
            for size, seconds in times.items()
        ]
        show(f"frames to features, {name}", ("clips", "ms", "ms a clip", "TFLOP/s"), rows)
        results |= {f"{name}_ms_{size}": seconds * 1e3 for size, seconds in times.items()}
    summary = {"benchmark": "encoder", "machine": _machine(device), "depth": config.vision.depth, "tflop": tflop}
    print(json.dumps(summary | {"frames": arguments.frames} | results))
    return int(ratio.difference > TOLERANCE)


def cut(config: VideoChatConfig, *, depth: int) -> VideoChatConfig:
    """Keep the first `depth` blocks of the trunk with as many global blocks as fit, and a minimal language model."""
    vision = replace(config.vision, depth=depth, num_global_blocks=min(depth, config.vision.num_global_blocks))
    return replace(config, vision=vision, decoder=NO_DECODER)


def build(config: VideoChatConfig, device: torch.device) -> VideoChatNetwork:
    """Build a network with random float32 weights, none of which is zero."""
    with torch.device("meta"):
        network = VideoChatNetwork(config)
    network.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        parameter.normal_(mean=float(parameter.ndim == 1 and name.endswith("weight")), std=0.02)
    return network.requires_grad_(False).eval()


def count_flops(config: VideoChatConfig, *, num_frames: int) -> int:
    """Count the floating-point operations of one clip, from frames to features; a multiply-add counts as two."""
    with torch.device("meta"):
        network = VideoChatNetwork(config)
        clip = torch.empty(1, num_frames, 3, config.vision.image_size, config.vision.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.query(plain_tokens(network, clip))
    return int(counter.get_total_flops())


def compare(network: VideoChatNetwork, clip: Tensor, *, repeats: int) -> Ratio:
    """Run both implementations alternately, after a first round that compares their results and is not timed."""
    expected, got = plain_tokens(network, clip), network.see(clip)
    difference = float((got - expected).abs().max() / expected.abs().max())
    del expected, got
    pairs = [(_timed(lambda: plain_tokens(network, clip)), _timed(lambda: network.see(clip))) for _ in range(repeats)]
    return Ratio(
        plain_s=statistics.median(plain for plain, _ in pairs),
        ours_s=statistics.median(ours for _, ours in pairs),
        ratio=statistics.median(plain / ours for plain, ours in pairs),
        difference=difference,
    )


def operations(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Profile `work`; returns the seconds of each operation (on a GPU: of each kernel), longest first."""
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiled:
        work()
        _wait()
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    seconds = {event.key: float(getattr(event, attribute)) / 1e6 for event in profiled.key_averages()}
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def scaling(network: VideoChatNetwork, clip: Tensor, *, batches: Sequence[int], repeats: int) -> dict[int, float]:
    """Measure the median seconds from frames to features for each batch size."""
    times = {}
    for size in batches:
        clips = clip.expand(size, -1, -1, -1, -1).contiguous()
        network.encode(clips)
        times[size] = statistics.median(_timed(partial(network.encode, clips)) for _ in range(repeats))
    return times


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks encoder")
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    parser.add_argument("--depth", type=int, default=PUBLISHED_7B.vision.depth, help="blocks of the trunk")
    parser.add_argument("--frames", type=int, default=PUBLISHED_7B.num_frames)
    parser.add_argument("--repeats", type=int, default=10 if has_gpu else 3)
    parser.add_argument(
        "--batches", type=int, nargs="*", default=BATCHES if has_gpu else (), help="batch sizes, in clips"
    )
    dtypes = ("float32", "float16", "bfloat16")
    parser.add_argument(
        "--dtypes", nargs="*", default=dtypes, choices=dtypes, help="data types in which --batches are measured"
    )
    return parser


def _timed(work: Callable[[], object]) -> float:
    """The seconds until `work` is done; waits for the GPU."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _share_rows(seconds: dict[str, float]) -> list[list[str]]:
    total = sum(seconds.values())
    first = dict(list(seconds.items())[:SHOWN_OPERATIONS])
    first["all others"] = total - sum(first.values())
    return [[name[:80], f"{spent * 1e3:.1f}", f"{spent / total:.1%}"] for name, spent in first.items()]


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    raise SystemExit(main())
