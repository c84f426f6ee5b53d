"""A random LLaMA of two layers, a vocabulary of bytes, and the reference that the engine is compared with."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.engine.engine import Engine, EngineConfig, Output, Segment, TextSegment, VideoSegment
from model.engine.sampling_params import SamplingParams
from model.engine.sequence import ADDED, Condition

EOS = 256
VOCAB = 258
HIDDEN = 32
CONFIG = EngineConfig(max_num_seqs=16, max_model_len=96, max_num_batched_tokens=64, block_size=4)


class Bytes:
    """A vocabulary in which token i is the byte i; other tokens are special."""

    eos_id = EOS

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < EOS else b""


def small_llama() -> LlamaForCausalLM:
    """Always the same weights, with a spread so large that rounding does not change the greedy choice."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


def engine(config: EngineConfig = CONFIG) -> Engine:
    return Engine(small_llama(), Bytes(), config)


def text(length: int, *, seed: int = 0) -> TextSegment:
    generator = torch.Generator().manual_seed(seed)
    return TextSegment(tuple(torch.randint(0, 256, (length,), generator=generator).tolist()))


def video(length: int, *, seed: int = 0) -> VideoSegment:
    generator = torch.Generator().manual_seed(seed)
    return VideoSegment(torch.randn(length, HIDDEN, generator=generator) / 4, identity=f"clip {seed}")


def condition(seed: int) -> Condition:
    """Added to the attention of both layers; large enough to change most tokens of an answer."""
    generator = torch.Generator().manual_seed(seed)
    return Condition({ADDED: torch.randn(2, 4, HIDDEN // 4, generator=generator)}, identity=f"condition {seed}")


@dataclass
class Received:
    """All outputs of one request together."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    outputs: list[Output] = field(default_factory=list)

    def add(self, output: Output) -> None:
        assert self.finish_reason is None, "there is no output after the end"
        self.text += output.text
        self.token_ids += output.token_ids
        self.finish_reason = output.finish_reason
        self.outputs.append(output)


def collect(outputs: Iterable[Output], received: dict[str, Received]) -> None:
    for output in outputs:
        received.setdefault(output.request_id, Received()).add(output)


def run_to_end(running: Engine) -> dict[str, Received]:
    """Step until the engine has no work."""
    received: dict[str, Received] = {}
    while running.has_work:
        collect(running.step(), received)
    running.check()
    assert running.num_held_blocks == 0
    return received


def alone(prompt: tuple[Segment, ...], params: SamplingParams, config: EngineConfig = CONFIG) -> Received:
    """The answer to a prompt in an engine without other requests."""
    only = engine(config)
    only.add_request("alone", prompt, params)
    return run_to_end(only)["alone"]


def generate(
    prompt: tuple[Segment, ...],
    *,
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    condition: Condition | None = None,
) -> list[int]:
    """Token ids by `generate` of transformers, with its own attention; a hook adds the condition to it."""
    language_model = small_llama()
    if condition is not None:
        for layer, added in zip(language_model.model.layers, condition.tensors[ADDED], strict=True):
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, rows, added=added: (rows[0] + added.flatten(),))
    rows = [
        segment.embeddings
        if isinstance(segment, VideoSegment)
        else language_model.get_input_embeddings()(torch.tensor(segment.token_ids))
        for segment in prompt
    ]
    embeds = torch.cat(rows)[None]  # [1, num_prompt_tokens, hidden]
    ids: list[int] = language_model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
        do_sample=False,
        pad_token_id=EOS,
    )[0].tolist()
    return ids
