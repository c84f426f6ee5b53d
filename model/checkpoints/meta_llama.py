"""Reads LLaMA as Meta published it: a folder of `params.json` and one `consolidated.00.pth`."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.checkpoints.json_object import read_object
from model.checkpoints.published import FolderKind, Keys, holds
from model.checkpoints.torch_file import read_torch_file
from model.networks.llama import DecoderConfig
from model.weights import WeightsError

PARAMS, WEIGHTS = "params.json", "consolidated.00.pth"
META_FOLDER = FolderKind(description=f"LLaMA folder of Meta ({PARAMS}, {WEIGHTS})", matches=holds(PARAMS, WEIGHTS))
_MATRICES = r"attention\.w[qkvo]|feed_forward\.w[123]|attention_norm|ffn_norm"
META_KEYS = Keys(
    wanted=rf"(tok_embeddings|norm|output|layers\.\d+\.({_MATRICES}))\.weight", unused=r"rope\.freqs", prefix="llama."
)
"""The keys of the file; in a merged model they begin with `llama.`."""
_MATRIX_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
META_RENAMES = (
    *(
        (rf"^llama\.layers\.(\d+)\.{re.escape(name)}\.(weight|bias)$", rf"model.layers.\1.{ours}.\2")
        for name, ours in _MATRIX_NAMES.items()
    ),
    (r"^llama\.tok_embeddings\.", "model.embed_tokens."),
    (r"^llama\.norm\.", "model.norm."),
    (r"^llama\.output\.", "lm_head."),
)
"""Map the merged keys to transformers' names. The rows of queries and keys must be reordered besides."""
_EMBEDDINGS, _GATE = "tok_embeddings.weight", "layers.0.feed_forward.w1.weight"


def read_meta_llama(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the folder, mapped.

    Raises:
        WeightsError: the weights are absent, damaged, or in several files.
    """
    if more := sorted(path.name for path in folder.glob("consolidated.*.pth") if path.name != WEIGHTS):
        raise WeightsError(f"{folder} holds {more[0]} too: it is a LLaMA of another size, split over several files.")
    return read_torch_file(folder / WEIGHTS)


def meta_sizes(folder: Path, tensors: Mapping[str, Tensor], *, max_positions: int = 2048) -> DecoderConfig:
    """Return the sizes in `params.json`, and those that only the tensors tell (its `vocab_size` is -1).

    Raises:
        WeightsError: a size is missing or impossible, or a tensor from which one follows.
    """
    values = read_object(folder / PARAMS)
    try:
        return DecoderConfig(
            vocab_size=len(tensors[_EMBEDDINGS]),
            width=values["dim"],
            depth=values["n_layers"],
            num_heads=values["n_heads"],
            mlp_width=len(tensors[_GATE]),
            max_positions=max_positions,
            rms_eps=values["norm_eps"],
        )
    except KeyError as error:
        raise WeightsError(f"{folder.name} lacks {error} in {PARAMS} or {WEIGHTS}; it is not Meta's LLaMA.") from error
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{folder.name} does not hold the sizes of a LLaMA of Meta's ({error}).") from error
