"""ImageBind-LLM (OpenGVLab): prompt, key map, sizes, and loading.

Prompt and numbers are those of the published demo without its cache of nearest neighbours (kNN), with which answers
differ. Text of a user cannot imitate a turn, and a conversation may have several turns.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from model.checkpoints.folder import Checkpoint, read_model
from model.checkpoints.meta_llama import META_RENAMES
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.imagebind_llm.network import ImageBindLLMConfig, ImageBindLLMNetwork
from model.families.imagebind_llm.published import PUBLISHED_7B, read_published, read_sizes
from model.families.imagebind_llm.verification import verify_stages
from model.family import Family, blank, build_family, seeded_model
from model.memory_estimate import ValueCounts, count_values, num_parameters
from model.networks import imagebind_audio, imagebind_vision
from model.networks.imagebind_audio import ImageBindAudioConfig
from model.networks.imagebind_vision import ImageBindVisionConfig
from model.networks.llama import DecoderConfig
from model.quantization import Quantization
from model.role import Role
from model.text.conversation import Conversation, Piece
from model.text.tokenizer import EOS, ByteTokenizer, Tokenizer, plain_tokenizer
from model.verification.inputs import read_tokenizer
from model.video.inputs import InputSpec, SoundSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap

__all__ = ["SIZES", "load", "read_source", "value_counts", "verify_stages"]

NAME = "imagebind-llm"
PUBLISHED_SAMPLING = SamplingParams(temperature=0.1, top_p=0.75, max_tokens=256)
NUM_WINDOWS = 5
"""Windows of two seconds; the model takes the first and the last frame of each, in three crops."""
NUM_SOUNDS = 3

SIZES = {"7b": PUBLISHED_7B}
TINY = ImageBindLLMConfig(
    vision=ImageBindVisionConfig(width=64, depth=2, num_heads=4, out_width=32, image_size=28),
    audio=ImageBindAudioConfig(width=32, depth=2, num_heads=4, out_width=32),
    bridge_width=128,
    num_query_layers=2,
    lora_rank=4,
    decoder=DecoderConfig(vocab_size=354, width=64, depth=3, num_heads=4, mlp_width=128),
)
TINY_SEED = 1
"""Seed of the small model's weights. It is untrained, and its answers are noise."""

TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
TASK_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
_HEADING = re.compile(r"###(?=\s*(?:Instruction|Input|Response)\b)", re.IGNORECASE)

_BRIDGE = (
    (r"^image_bind_proj\.", "bridge.0."),
    (r"^image_bind_norm_(\d)\.", r"bridge.\1.norm."),
    (r"^image_bind_(f\d)_(\d)\.", r"bridge.\2.\1."),
    (r"^prefix_query\.weight$", "prefix_query"),
    (r"^llama\.layers\.(\d+)\.attention\.gate$", r"adapters.\1.gate"),
    (r"^llama\.layers\.(\d+)\.\w+\.lora_(w\w)_(l\d)\.", r"adapters.\1.lora.\2.\3."),
)
KEY_MAP = KeyMap(
    renames=(
        (r"^image_bind\.(modality_\w+\.(vision|audio)\.)", r"\2.\1"),
        *imagebind_vision.key_renames("vision."),
        *imagebind_audio.key_renames("audio."),
        *_BRIDGE,
        *META_RENAMES,
        (r"^(model|lm_head)\.", r"language_model.\1."),
    )
)
"""From the names of the merged published files to ours; our own names are unchanged."""


def neutralise(text: str) -> str:
    """Make text of a user or a client safe: `### Response` becomes `# ## Response`, which is no heading."""
    return _HEADING.sub("# ##", text)


class AlpacaTemplate:
    """The published prompt, Alpaca's: `… ### Instruction:\\n… ### Response:`; each further turn repeats both headings.

    The system text of a session is the input that Alpaca's prompt can have. Videos take no place in the prompt.
    """

    stop = (EOS,)

    def render(self, conversation: Conversation) -> tuple[Piece, ...]:
        """Return the prompt as one text; the answer follows it."""
        assert conversation.turns and conversation.turns[-1].role == "user", "a question comes last"
        given = neutralise(conversation.system)
        blocks: list[str] = []
        for turn in conversation.turns:
            if turn.role == "assistant":
                blocks[-1] += neutralise(turn.text.strip())
                continue
            blocks.append(f"### Instruction:\n{neutralise(turn.text)}")
            if given and len(blocks) == 1:
                blocks.append(f"### Input:\n{given}")
            blocks.append("### Response:")
        return ((TASK_WITH_INPUT if given else TASK) + "\n\n".join(blocks),)


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    role: Role = "all",
) -> Family:
    """Load the model in a folder; None is a small, untrained model of seeded random values.

    The folder holds `config.json` with the sizes in the layout of `ImageBindLLMConfig.to_json`, `*.safetensors` with
    published names or ours, LLaMA's `tokenizer.model`, and perhaps `generation_config.json`. It can also be a folder
    of reference tensors, whose `config.json` has sizes under `imagebind` and `llama`.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    if checkpoint is None:
        saved = seeded_model(ImageBindLLMNetwork, TINY, seed=TINY_SEED, sampling=PUBLISHED_SAMPLING)
        tokenizer = plain_tokenizer()
    else:
        saved = read_model(checkpoint, read_sizes=read_sizes, published_sampling=PUBLISHED_SAMPLING)
        tokenizer = _tokenizer(checkpoint, saved.config)
    family = build_family(
        saved,
        ImageBindLLMNetwork,
        tokenizer,
        name=NAME,
        key_map=KEY_MAP,
        dtype=dtype,
        role=role,
        inputs=_inputs(saved.config),
        template=AlpacaTemplate(),
    )
    del saved  # so that the pages of a weight are released when it is quantised
    return family.move_to(device, quantization=quantization, role=role)


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """Find and merge the published files; return what `reeltalk convert` writes, and the identity of the sources.

    Args:
        folder: holds the published files as the original does, or a whole model in `weights.safetensors`.
        parts: paths elsewhere: `imagebind`, `adapter`, `tokenizer`, `config` (files), `llama`, `delta` (folders).
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's dtype.

    Raises:
        WeightsError, TokenizerError: the files do not make up one ImageBind-LLM model.
    """
    source = read_whole(folder, parts, read_sizes) or read_published(folder, parts, ignored=ignored)
    return to_convert(NAME, blank(ImageBindLLMNetwork, source.config), source, key_map=KEY_MAP, dtype=dtype)


def value_counts(size: str) -> ValueCounts:
    """Count the values of a published size, one of `SIZES`, without allocating memory."""
    config = SIZES[size]
    network = blank(ImageBindLLMNetwork, config)
    network.merge()
    return count_values(
        network,
        modules={
            "ImageBind vision": num_parameters(network.vision),
            "ImageBind audio": 0 if network.audio is None else num_parameters(network.audio),
            "bridge": num_parameters(network.bridge),
            "adapter": network.prefix_query.numel() + num_parameters(network.adapters),
        },
        num_tokens=NUM_WINDOWS * 3 * (config.vision.num_patches + 1),
        width=config.vision.width,
        mlp_width=4 * config.vision.width,
    )


def _inputs(config: ImageBindLLMConfig) -> InputSpec:
    num_frames = NUM_WINDOWS * config.vision.num_frames
    return InputSpec(
        frames=FrameSpec(count=num_frames, rule="windows"),
        pixels=PixelSpec(size=config.vision.image_size, fit="bilinear", crops=3, crop_rounding="up"),
        min_frames=num_frames,
        max_frames=num_frames,
        sound=None if config.audio is None else SoundSpec(count=NUM_SOUNDS, rule="end-points"),
    )


def _tokenizer(checkpoint: Path, config: ImageBindLLMConfig) -> Tokenizer:
    """Read LLaMA's tokenizer; a reference that begins with token ids has none, and may have few of them."""
    tokenizer = read_tokenizer(checkpoint)
    if isinstance(tokenizer, ByteTokenizer):
        tokenizer.vocab_size = min(tokenizer.vocab_size, config.decoder.vocab_size)
    return tokenizer
