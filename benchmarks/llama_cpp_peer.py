"""Runs llama.cpp on the same weights and prompts, through the batch calls of llama-cpp-python.

Optional: `pip install llama-cpp-python gguf`, which compiles for a quarter of an hour on two cores.
"""

import ctypes
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


class LlamaCpp:
    """A model of transformers, written as GGUF and loaded by llama.cpp.

    Args:
        model: the model whose weights are written; 16-bit weights stay 16-bit.
        num_threads: the number of threads of llama.cpp.
        num_streams: the maximum number of concurrent sequences.
        context: the maximum number of tokens of a sequence.

    Raises:
        ImportError: llama-cpp-python or gguf is not installed.
    """

    def __init__(self, model: LlamaForCausalLM, *, num_threads: int, num_streams: int, context: int) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            _write(model, path)
            parameters = llama_cpp.llama_model_default_params()
            parameters.use_mmap = False
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise RuntimeError("llama.cpp cannot load the GGUF file.")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = num_streams * context
        settings.n_batch = settings.n_ubatch = 2048
        settings.n_seq_max = num_streams
        settings.n_threads = settings.n_threads_batch = num_threads
        settings.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._vocab: int = model.config.vocab_size

    def run(self, prompts: Sequence[Sequence[int]], num_answer: int) -> tuple[float, list[list[int]]]:
        """Generate all answers together, greedily; returns the seconds, and the token ids of each answer."""
        lib = self._lib
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        batch = lib.llama_batch_init(2048, 0, 1)
        answers: list[list[int]] = [[] for _ in prompts]
        start = time.perf_counter()
        # First batches with as many prompts as fit, then batches with one token of each answer.
        waiting = list(enumerate(prompts))
        while waiting:
            now, count = [], 0
            while waiting and count + len(waiting[0][1]) <= 2048:
                now.append(waiting.pop(0))
                count += len(now[-1][1])
            self._decode(
                batch,
                [(number, position, token) for number, prompt in now for position, token in enumerate(prompt)],
                {len(prompt) - 1 for _, prompt in now},
                prompts,
                answers,
            )
        for turn in range(num_answer - 1):
            rows = [(number, len(prompt) + turn, answers[number][-1]) for number, prompt in enumerate(prompts)]
            self._decode(batch, rows, None, prompts, answers)
        took = time.perf_counter() - start
        lib.llama_batch_free(batch)
        return took, answers

    def _decode(
        self,
        batch: Any,
        rows: list[tuple[int, int, int]],
        last: set[int] | None,
        prompts: Sequence[Sequence[int]],
        answers: list[list[int]],
    ) -> None:
        """Decode rows of (sequence, position, token); the last row of each prompt, or every row, yields a token."""
        batch.n_tokens = len(rows)
        sampled = []
        for row, (number, position, token) in enumerate(rows):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, number
            is_sampled = last is None or position == len(prompts[number]) - 1
            batch.logits[row] = is_sampled
            if is_sampled:
                sampled.append((row, number))
        if self._lib.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode a batch.")
        for row, number in sampled:
            logits = self._lib.llama_get_logits_ith(self._context, row)
            values = torch.frombuffer(
                (ctypes.c_float * self._vocab).from_address(ctypes.addressof(logits.contents)), dtype=torch.float32
            )
            answers[number].append(int(values.argmax()))


def _write(model: LlamaForCausalLM, path: Path) -> None:
    import gguf

    config = model.config
    kind = {
        torch.float32: gguf.GGMLQuantizationType.F32,
        torch.bfloat16: gguf.GGMLQuantizationType.BF16,
        torch.float16: gguf.GGMLQuantizationType.F16,
    }[model.dtype]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, tensor: torch.Tensor) -> None:
        if tensor.dim() == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, tensor.float().numpy())
        elif kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, tensor.numpy())
        else:
            writer.add_tensor(name, tensor.contiguous().view(torch.uint8).numpy(), raw_dtype=kind)

    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    add("token_embd.weight", weights["model.embed_tokens.weight"])
    add("output_norm.weight", weights["model.norm.weight"])
    add("output.weight", weights["lm_head.weight"])
    for layer in range(config.num_hidden_layers):
        for theirs, name in _TENSORS.items():
            tensor = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
                tensor = _interleave(tensor, heads)
            add(f"blk.{layer}.{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder rows [out, in] for rotary embeddings: llama.cpp rotates neighbours, transformers the halves of a head."""
    out, hidden = weight.shape
    return weight.view(num_heads, 2, out // num_heads // 2, hidden).transpose(1, 2).reshape(out, hidden)
