"""`decode`: measure tokens/s of the published 7B geometry on one device, and compare with its memory bandwidth.

Weights are random, because speed does not depend on their values. Every stream has its own prompt of 96 video tokens
and 74 text tokens. The lower bound of a step with one stream is the time to read all weights once, at the rate at which
the device copies memory. Needs only torch, transformers and safetensors.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.engine import NUM_TEXT, NUM_VIDEO, Ids, words
from benchmarks.table import show
from model.engine.engine import Engine, EngineConfig, VideoSegment
from model.engine.sampling_params import SamplingParams

GOAL_BANDWIDTH, GOAL_PEAK_MIB = 0.7, 18_850
"""The minimum share of the bandwidth with one stream, and the maximum memory (the original's) with 8 streams."""
PEAK_STREAMS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """The results for a number of streams."""

    num_streams: int
    step_ms: float
    """The median of the steps that only decode."""
    tokens_per_s: float
    peak_mib: float
    """The peak of the device's memory, including weights and cache; 0 on the CPU."""


def main() -> int:
    """Measure and print; returns 1 if a goal for GPUs is missed."""
    arguments = _parser().parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    language_model = build(depth=arguments.depth, width=arguments.width, device=device, dtype=dtype)
    weight_bytes = streamed_bytes(language_model)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{machine}, torch {torch.__version__}, {arguments.dtype}, {weight_bytes / 1e9:.2f} GB of weights a step")
    bandwidth = copy_rate(device, num_bytes=arguments.copy_mib * 2**20)
    graphs = not arguments.no_cuda_graphs
    rates = [
        measure(language_model, num_streams, num_tokens=arguments.tokens, cuda_graphs=graphs)
        for num_streams in arguments.streams
    ]
    rows = [[str(r.num_streams), f"{r.step_ms:.2f}", f"{r.tokens_per_s:.0f}", f"{r.peak_mib:.0f}"] for r in rates]
    show("decode", ("streams", "ms a step", "tokens/s", "peak MiB"), rows)
    results: dict[str, float] = {f"tokens_per_s_{rate.num_streams}": rate.tokens_per_s for rate in rates}
    results["tflops_prefill"] = prefill_tflops(language_model, num_tokens=arguments.prompt)
    results["bandwidth_gb_s"] = bandwidth / 1e9
    one = next((rate for rate in rates if rate.num_streams == 1), None)
    if one is not None:
        results["share_of_bandwidth"] = weight_bytes / bandwidth / (one.step_ms / 1e3)
        print(f"one stream: {results['share_of_bandwidth']:.0%} of {bandwidth / 1e9:.0f} GB/s")
    print(f"prefill of {arguments.prompt} tokens: {results['tflops_prefill']:.1f} TFLOP/s")
    eight = next((rate for rate in rates if rate.num_streams == PEAK_STREAMS), None)
    if eight is not None:
        results["peak_mib"] = eight.peak_mib
    print(json.dumps({"benchmark": "decode", "machine": machine, "dtype": arguments.dtype} | results))
    if device.type != "cuda":
        return 0
    return int(results.get("share_of_bandwidth", 1) < GOAL_BANDWIDTH or results.get("peak_mib", 0) > GOAL_PEAK_MIB)


def build(*, depth: int, width: int, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """Build a LLaMA with the proportions of LLaMA-7B: heads of 128, an MLP of 2.6875 times the width."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // 128),
        max_position_embeddings=2048,
        dtype=dtype,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            language_model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return language_model.eval()


def streamed_bytes(language_model: LlamaForCausalLM) -> int:
    """The bytes of weights that every step reads: all except the embedding table, of which it reads a few rows."""
    table = language_model.get_input_embeddings().weight
    return sum(each.nbytes for each in language_model.parameters() if each is not table)


def copy_rate(device: torch.device, *, num_bytes: int) -> float:
    """Measure the bytes per second that a copy reads and writes; returns the best of ten runs."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start = _now(device)
        target.copy_(source)
        times.append(_now(device) - start)
    return 2 * num_bytes / min(times)


def measure(language_model: LlamaForCausalLM, num_streams: int, *, num_tokens: int, cuda_graphs: bool) -> Rate:
    """Decode `num_streams` streams together; measures from the moment when all have their first token."""
    device = language_model.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    engine = Engine(
        language_model, Ids(), _config(num_streams, NUM_VIDEO + NUM_TEXT + num_tokens, cuda_graphs=cuda_graphs)
    )
    hidden = language_model.config.hidden_size
    for number in range(num_streams):
        rows = torch.randn(NUM_VIDEO, hidden, generator=torch.Generator().manual_seed(number)) * 0.02
        prompt = (VideoSegment(rows, f"clip {number}"), words(NUM_TEXT, number))
        engine.add_request(str(number), prompt, SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    started: set[str] = set()
    while len(started) < num_streams:
        started.update(output.request_id for output in engine.step())
    times, num_decoded = [], 0
    while engine.has_work:
        start = _now(device)
        outputs = engine.step()
        times.append(_now(device) - start)
        num_decoded += len(outputs)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    return Rate(
        num_streams=num_streams,
        step_ms=statistics.median(times) * 1e3,
        tokens_per_s=num_decoded / sum(times),
        peak_mib=peak,
    )


def prefill_tflops(language_model: LlamaForCausalLM, *, num_tokens: int) -> float:
    """Measure the TFLOP/s of the matrix products of one prompt, without attention; returns the best of three."""
    engine = Engine(language_model, Ids(), _config(1, num_tokens + 1, cuda_graphs=False))
    num_weights = streamed_bytes(language_model) / language_model.dtype.itemsize
    device, times = language_model.device, []
    for number in range(4):
        engine.add_request(str(number), (words(num_tokens, 100 + number),), SamplingParams(max_tokens=1))
        start = _now(device)
        while engine.has_work:
            engine.step()
        times.append(_now(device) - start)
    return float(2 * num_weights * num_tokens / min(times[1:]) / 1e12)


def _config(num_streams: int, length: int, *, cuda_graphs: bool) -> EngineConfig:
    return EngineConfig(
        max_num_seqs=num_streams,
        max_model_len=length,
        max_num_batched_tokens=max(2048, num_streams, length),
        cuda_graphs=cuda_graphs,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _parser() -> argparse.ArgumentParser:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks decode")
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--depth", type=int, default=32, help="layers")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--streams", type=int, nargs="+", default=(1, 8, 32, 128) if has_gpu else (1, 8))
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--prompt", type=int, default=1536, help="tokens of the prompt whose prefill is timed")
    parser.add_argument("--copy-mib", type=int, default=2048 if has_gpu else 256, help="to measure the memory's rate")
    parser.add_argument("--no-cuda-graphs", action="store_true")
    return parser
