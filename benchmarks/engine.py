"""`engine`: compare the engine with loops around `generate` and with llama.cpp, on a LLaMA of 134 M random parameters.

Prompts are 96 video tokens and 74 text tokens, or 170 text tokens for a peer that takes only ids; answers are 64
tokens, greedy. All candidates run alternately in one process, `--repeat` times; prints medians and their ratios.
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
    """A minimal tokenizer for random token ids."""

    eos_id = 2

    def token_bytes(self, token_id: int) -> bytes:
        """One letter for each token."""
        return b"abcdefghijklmnopqrstuvwxyz"[token_id % 26 : token_id % 26 + 1]


def language_model(dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """Create a model with the same random weights each time."""
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
    """Create a prompt of video tokens and text; the text differs between prompts, and so do clips unless given."""
    generator = torch.Generator().manual_seed(number if clip is None else clip)
    rows = torch.randn(NUM_VIDEO, HIDDEN, generator=generator) * 0.02
    return VideoSegment(rows, f"clip {number if clip is None else clip}"), words(num_text, number)


def words(count: int, number: int) -> TextSegment:
    """Create random token ids."""
    generator = torch.Generator().manual_seed(1000 + number)
    return TextSegment(tuple(torch.randint(3, VOCAB, (count,), generator=generator).tolist()))


@dataclass
class Bench:
    """The models under test, and the results."""

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
        """Create an engine with an empty cache."""
        beside = 512 if self.device == "cuda" else 24  # the values of the service's workers
        config = EngineConfig(max_num_seqs=32, max_model_len=POSITIONS, max_prefill_beside_decode=beside)
        return Engine(self.served, Ids(), config)

    def compare(self, title: str, runners: dict[str, Callable[[], float]], *, unit: str = "tokens/s") -> None:
        """Run all candidates alternately and print medians, with the ratio of the first to the others."""
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
        """Tokens/s of the engine with concurrent streams."""
        engine = self.engine()
        for number in range(num_streams):
            engine.add_request(f"{number}", _ids_only(number) if text_only else prompt(number), ANSWER)
        start = time.perf_counter()
        num_tokens = sum(len(output.token_ids) for output in _run(engine))
        assert num_tokens == num_streams * NUM_ANSWER
        return num_tokens / (time.perf_counter() - start)

    def generate_each(self, num_streams: int) -> float:
        """Tokens/s of one `generate` after another, as in the original demo."""
        start = time.perf_counter()
        for number in range(num_streams):
            self._generate(self._embeds(number))
        return num_streams * NUM_ANSWER / (time.perf_counter() - start)

    def generate_batch(self, num_streams: int) -> float:
        """Tokens/s of `generate` on one static batch, without scheduling."""
        embeds = torch.cat([self._embeds(number) for number in range(num_streams)])
        start = time.perf_counter()
        self._generate(embeds)
        return num_streams * NUM_ANSWER / (time.perf_counter() - start)

    def continuous(self, num_streams: int) -> float:
        """Tokens/s of the continuous batching of transformers, which takes only token ids."""
        inputs = [list(segment.token_ids) for n in range(num_streams) for segment in _ids_only(n)]
        config = GenerationConfig(max_new_tokens=NUM_ANSWER, do_sample=False, eos_token_id=-1, pad_token_id=0)
        model = language_model(self.dtype, self.device)  # a new model, because it replaces the attention
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
        """Tokens/s of llama.cpp with the same weights and ids, all in one batch."""
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
        """Prefill a prompt of 1,500 tokens beside 8 running streams.

        Returns:
            The median ms between tokens of the streams before; the 99th percentile during the prefill; and the seconds
            to the first token of the long prompt.
        """
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
        """The percentage of a decode step that the engine spends outside the forward pass."""
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
        """The number of KV blocks that 16 sessions use when all of them have their first token."""
        engine = self.engine()
        for number in range(NUM_STREAMS):
            engine.add_request(f"{number}", prompt(number, clip=0 if is_shared else None), ANSWER)
        started: set[str] = set()
        while len(started) < NUM_STREAMS:
            started.update(output.request_id for output in engine.step())
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
    """Run the benchmarks that the command line selects."""
    parser = argparse.ArgumentParser(description="Compare the engine with loops around generate.")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its default")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="run only the benchmarks with this text in their title")
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
        bench.compare(
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
            print("\nSkipped llama.cpp; to include it: pip install llama-cpp-python gguf")
        else:
            runners["llama.cpp"] = lambda: bench.llama_cpp(NUM_STREAMS)
        bench.compare(title, runners)

    def alone(title: str) -> None:
        bench.compare(title, {"ours": lambda: bench.ours(1), "generate": lambda: bench.generate_each(1)})

    def turn(title: str) -> None:
        bench.compare(
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
            summary = (
                f"p50 {quiet:.1f} ms before, p99 {slow:.1f} ms during the prefill; its first token after {first:.1f} s"
            )
            print(f"\n{title}\n  {summary}")
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
