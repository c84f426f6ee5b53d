"""The engine against the loops people write around `generate`, on one LLaMA of 134 M random parameters.

Prompts are 96 video rows and 74 token ids (170 token ids where a peer takes nothing else), answers 64 tokens, greedy.
Everything that is compared runs in this one process, by turns, `--repeat` times; medians and their ratios are printed.
"""

import argparse
import gc
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.llama_cpp_peer import LlamaCpp
from model.engine.engine import Engine, EngineConfig, Output, Segment, TextSegment, VideoSegment
from model.engine.sampling_params import SamplingParams

HIDDEN, VOCAB, POSITIONS = 768, 32_000, 2048
NUM_VIDEO, NUM_TEXT, NUM_ANSWER, NUM_STREAMS = 96, 74, 64, 16
ANSWER = SamplingParams(max_tokens=NUM_ANSWER, ignore_eos=True)


class Ids:
    """A vocabulary whose pieces are never read."""

    eos_id = 2

    def token_bytes(self, token_id: int) -> bytes:
        """Always one letter."""
        return b"abcdefghijklmnopqrstuvwxyz"[token_id % 26 : token_id % 26 + 1]


def language_model(dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=POSITIONS,
    )
    return LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


def prompt(number: int, *, clip: int | None = None, num_text: int = NUM_TEXT) -> tuple[Segment, ...]:
    """Video rows, and words that differ from prompt to prompt."""
    generator = torch.Generator().manual_seed(number if clip is None else clip)
    rows = torch.randn(NUM_VIDEO, HIDDEN, generator=generator) * 0.02
    return VideoSegment(rows, f"clip {number if clip is None else clip}"), words(num_text, number)


def words(count: int, number: int) -> TextSegment:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1000 + number)
    return TextSegment(tuple(torch.randint(3, VOCAB, (count,), generator=generator).tolist()))


@dataclass
class Bench:
    """The model, an engine on it, and what was measured."""

    dtype: torch.dtype
    device: str
    repeat: int
    threads: int
    results: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plain = language_model(self.dtype, self.device)
        self.served = language_model(self.dtype, self.device)
        self._llama_cpp: LlamaCpp | None = None

    def engine(self) -> Engine:
        """A fresh one, with nothing cached."""
        beside = 512 if self.device == "cuda" else 24  # as the service has it
        config = EngineConfig(max_num_seqs=32, max_model_len=POSITIONS, max_prefill_beside_decode=beside)
        return Engine(self.served, Ids(), config)

    def race(self, title: str, runners: dict[str, Callable[[], float]], *, unit: str = "tokens/s") -> None:
        """Run all by turns, and print medians; the first is compared with the others."""
        measured: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(self.repeat + 1):
            for name, runner in runners.items():
                gc.collect()
                value = runner()
                if number:  # the first round warms caches and allocators
                    measured[name].append(value)
        medians = {name: statistics.median(values) for name, values in measured.items()}
        ours, *others = medians
        print(f"\n{title}")
        for name, value in medians.items():
            spread = f"{min(measured[name]):.1f} to {max(measured[name]):.1f}"
            ratio = "" if name == ours else f"   ours is {medians[ours] / value:.2f} x"
            print(f"  {name:<28} {value:8.1f} {unit} ({spread}){ratio}")
        for name in others:
            self.results[f"{title} / {name}"] = round(medians[ours] / medians[name], 3)

    # Streams.

    def ours(self, num_streams: int, *, text_only: bool = False) -> float:
        """Tokens a second of so many at once."""
        engine = self.engine()
        for number in range(num_streams):
            engine.add_request(f"{number}", _ids_only(number) if text_only else prompt(number), ANSWER)
        start = time.perf_counter()
        num_tokens = sum(len(output.token_ids) for output in _run(engine))
        assert num_tokens == num_streams * NUM_ANSWER
        return num_tokens / (time.perf_counter() - start)

    def generate_each(self, num_streams: int) -> float:
        """One `generate` after the other, as the original demo serves."""
        start = time.perf_counter()
        for number in range(num_streams):
            self._generate(self._embeds(number))
        return num_streams * NUM_ANSWER / (time.perf_counter() - start)

    def generate_batch(self, num_streams: int) -> float:
        """`generate` on one static batch, which needs no scheduling, and lets nobody in or out."""
        embeds = torch.cat([self._embeds(number) for number in range(num_streams)])
        start = time.perf_counter()
        self._generate(embeds)
        return num_streams * NUM_ANSWER / (time.perf_counter() - start)

    def continuous(self, num_streams: int) -> float:
        """transformers' own continuous batching; it takes token ids alone."""
        inputs = [list(segment.token_ids) for n in range(num_streams) for segment in _ids_only(n)]
        config = GenerationConfig(max_new_tokens=NUM_ANSWER, do_sample=False, eos_token_id=-1, pad_token_id=0)
        model = language_model(self.dtype, self.device)  # it changes the model's attention
        start = time.perf_counter()
        outputs = model.generate_batch(
            inputs,
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(),
            progress_bar=False,
        )
        took = time.perf_counter() - start
        num_tokens = sum(len(output.generated_tokens) for output in outputs.values())
        assert num_tokens == num_streams * NUM_ANSWER, num_tokens
        return num_tokens / took

    def llama_cpp(self, num_streams: int) -> float:
        """llama.cpp with the same weights and ids; it too decides when what is computed, here all at once."""
        if self._llama_cpp is None:
            self._llama_cpp = LlamaCpp(self.plain, num_threads=self.threads, num_streams=NUM_STREAMS, context=256)
        prompts = [segment.token_ids for number in range(num_streams) for segment in _ids_only(number)]
        took, answers = self._llama_cpp.run(prompts, NUM_ANSWER)
        assert all(len(ids) == NUM_ANSWER for ids in answers)
        return num_streams * NUM_ANSWER / took

    # Time to first token, and between tokens.

    def second_turn(self, *, is_known: bool) -> float:
        """Milliseconds to the first token of a turn after 700 tokens of history."""
        engine = self.engine()
        before = (*prompt(1, num_text=700 - NUM_VIDEO),)
        if is_known:
            engine.add_request("before", before, SamplingParams(max_tokens=1, ignore_eos=True))
            list(_run(engine))
        engine.add_request("now", (*before, words(20, 7)), SamplingParams(max_tokens=1, ignore_eos=True))
        start = time.perf_counter()
        (output,) = _run(engine)
        took = time.perf_counter() - start
        computed = output.num_prompt_tokens - output.num_cached_tokens
        assert computed == (20 + 700 % 16 if is_known else 720), computed
        return 1000 * took

    def interruption(self) -> tuple[float, float, float]:
        """Of 8 running streams: the median of milliseconds between tokens, undisturbed and then p99 while a prompt of
        1,500 tokens is prefilled beside them; and seconds until that one's first token."""
        engine = self.engine()
        for number in range(8):
            engine.add_request(f"{number}", prompt(number), SamplingParams(max_tokens=1000, ignore_eos=True))
        engine.step()
        quiet, busy = [], []
        for _ in range(30):
            start = time.perf_counter()
            engine.step()
            quiet.append(time.perf_counter() - start)
        engine.add_request("long", (words(1500, 99),), SamplingParams(max_tokens=1))
        began = time.perf_counter()
        while True:
            start = time.perf_counter()
            outputs = engine.step()
            busy.append(time.perf_counter() - start)
            assert sum(output.request_id != "long" for output in outputs) == 8
            if any(output.request_id == "long" for output in outputs):
                break
        slow = sorted(busy)[min(len(busy) - 1, int(0.99 * len(busy)))]
        return 1000 * statistics.median(quiet), 1000 * slow, time.perf_counter() - began

    def own_time(self, num_streams: int) -> float:
        """Percent of a decode step that the engine spends outside the forward pass."""
        engine = self.engine()
        for number in range(num_streams):
            engine.add_request(f"{number}", prompt(number), ANSWER)
        engine.step()
        inside = [0.0]
        forward = self.served.forward

        def timed(*arguments: object, **named: object) -> object:
            start = time.perf_counter()
            try:
                return forward(*arguments, **named)
            finally:
                inside[0] += time.perf_counter() - start

        self.served.forward = timed
        try:
            start = time.perf_counter()
            for _ in range(NUM_ANSWER - 2):
                engine.step()
            whole = time.perf_counter() - start
        finally:
            self.served.forward = forward
        return 100 * (1 - inside[0] / whole)

    def blocks(self, *, is_shared: bool) -> int:
        """KV blocks that 16 sessions hold when the last of them has said its first word."""
        engine = self.engine()
        for number in range(NUM_STREAMS):
            engine.add_request(f"{number}", prompt(number, clip=0 if is_shared else None), ANSWER)
        heard: set[str] = set()
        while len(heard) < NUM_STREAMS:
            heard.update(output.request_id for output in engine.step())
        return engine.num_held_blocks

    def _embeds(self, number: int) -> torch.Tensor:
        video, text = prompt(number)
        assert isinstance(video, VideoSegment) and isinstance(text, TextSegment)
        ids = torch.tensor(text.token_ids, device=self.device)
        rows = (video.embeddings.to(device=self.device, dtype=self.dtype), self.plain.get_input_embeddings()(ids))
        return torch.cat(rows)[None]

    def _generate(self, embeds: torch.Tensor) -> None:
        ids = self.plain.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=self.device),
            max_new_tokens=NUM_ANSWER,
            min_new_tokens=NUM_ANSWER,
            do_sample=False,
            pad_token_id=0,
        )
        assert ids.shape[1] == NUM_ANSWER


def _ids_only(number: int) -> tuple[TextSegment]:
    return (words(NUM_VIDEO + NUM_TEXT, number),)


def _run(engine: Engine) -> Iterator[Output]:
    while engine.has_work:
        yield from engine.step()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="The engine against loops around generate.")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own choice")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="a title, or part of one")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    bench = Bench(
        dtype=getattr(torch, arguments.dtype),
        device=arguments.device,
        repeat=arguments.repeat,
        threads=torch.get_num_threads(),
    )
    print(
        f"134 M parameters, {arguments.dtype}, {arguments.device}, {bench.threads} threads, torch {torch.__version__}"
    )
    measurements = _measurements(bench)
    for title in [arguments.only] if arguments.only in measurements else measurements:
        if arguments.only in title:
            measurements[title](title)
    print(json.dumps(bench.results))


def _measurements(bench: Bench) -> dict[str, Callable[[str], None]]:
    def streams(title: str) -> None:
        bench.race(
            title,
            {
                "ours": lambda: bench.ours(NUM_STREAMS),
                "generate, one static batch": lambda: bench.generate_batch(NUM_STREAMS),
                "generate, one by one": lambda: bench.generate_each(4),
            },
        )

    def ids(title: str) -> None:
        runners = {
            "ours": lambda: bench.ours(NUM_STREAMS, text_only=True),
            "generate_batch": lambda: bench.continuous(NUM_STREAMS),
        }
        if importlib.util.find_spec("llama_cpp") is None:
            print("\nLeft out: llama.cpp (pip install llama-cpp-python gguf).")
        else:
            runners["llama.cpp"] = lambda: bench.llama_cpp(NUM_STREAMS)
        bench.race(title, runners)

    def alone(title: str) -> None:
        bench.race(title, {"ours": lambda: bench.ours(1), "generate": lambda: bench.generate_each(1)})

    def turn(title: str) -> None:
        bench.race(
            title,
            {"known": lambda: bench.second_turn(is_known=True), "cold": lambda: bench.second_turn(is_known=False)},
            unit="ms",
        )

    def sharing(title: str) -> None:
        shared, apart = bench.blocks(is_shared=True), bench.blocks(is_shared=False)
        print(f"\n{title}\n  one video {shared} blocks, 16 videos {apart}")
        bench.results[title] = round(shared / apart, 3)

    def own(title: str) -> None:
        share = statistics.median(bench.own_time(NUM_STREAMS) for _ in range(bench.repeat))
        print(f"\n{title}\n  {share:.1f} % of a step")
        bench.results[title] = round(share, 2)

    def latency(title: str) -> None:
        rounds = [bench.interruption() for _ in range(bench.repeat)]
        ratios = [slow / quiet for quiet, slow, _ in rounds]
        for quiet, slow, first in rounds:
            told = f"p50 {quiet:.1f} ms undisturbed, p99 {slow:.1f} ms beside it; its first token after {first:.1f} s"
            print(f"\n{title}\n  {told}")
        bench.results[title] = round(statistics.median(ratios), 2)

    return {
        "16 streams": streams,
        "16 streams of token ids": ids,
        "one stream": alone,
        "second turn after 700 tokens": turn,
        "16 sessions: blocks held": sharing,
        "time outside the forward pass, 16 streams": own,
        "8 streams while 1,500 tokens arrive": latency,
    }
