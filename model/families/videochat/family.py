"""VideoChat (Ask-Anything `video_chat` by OpenGVLab): prompt, key map, sizes, and loading.

Prompt and numbers are those of the published demo, except that text of a user cannot imitate the prompt's markup.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from model.checkpoints.folder import Checkpoint, read_model, tokenizer_of
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.videochat.network import VideoChatNetwork
from model.families.videochat.published import BUFFERS, PUBLISHED_7B, PUBLISHED_13B, read_published, read_sizes
from model.families.videochat.verification import verify_stages
from model.family import Family, blank, build_family
from model.memory_estimate import ValueCounts, count_values, num_parameters
from model.networks.qformer import KEY_RENAMES as QFORMER_RENAMES
from model.quantization import Quantization
from model.role import Role
from model.text.conversation import Clip, Conversation, Slot, Turn
from model.text.sentencepiece import read_sentencepiece
from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap

__all__ = ["SIZES", "load", "read_source", "value_counts", "verify_stages"]

NAME = "videochat"
KEY_MAP = KeyMap(
    renames=QFORMER_RENAMES,
    ignored=BUFFERS,
    squeezed={"visual_encoder.patch_embed.proj.weight": (5, 2)},
)
"""Maps the original model's state dict to ours; our own names are unchanged."""

PUBLISHED_SAMPLING = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, max_tokens=1000)
"""The demo's settings. It does not set `top_k`; 50 was the default of transformers at the time."""

SIZES = {"7b": PUBLISHED_7B, "13b": PUBLISHED_13B}
DEFAULT_CHECKPOINT = Path(__file__).parents[2] / "tiny" / "weights"
"""The small model that ships with the package."""

_MARKUP = re.compile(r"#{3,}|</?(?:Video|Image|VideoHere|ImageHere|unk|s)>")


def neutralise(text: str) -> str:
    """Make text of a user or a client safe: it can imitate neither a turn nor the markup around a video.

    Spaces break up the markup of the prompt's format: `###` becomes `# # #`, `<Video>` becomes `< Video>`. It stays
    legible for readers and for the model, but cannot give the tokens of a separator.
    """
    return _MARKUP.sub(lambda found: _spaced(found[0]), text)


class VideoChatTemplate:
    """The published prompt: `###Human: …\\n###Assistant: …`; each video is a message before all questions."""

    stop = ("###",)

    def render(self, conversation: Conversation) -> tuple[str | Slot, ...]:
        """Return the prompt as texts and slots, in order; the answer follows the last text."""
        assert conversation.turns and conversation.turns[-1].role == "user", "a question comes last"
        segments: list[str | Slot] = []
        text = _ended(neutralise(conversation.system)) + "###"
        for number, clip in enumerate(conversation.clips):
            segments += [f"{text}Human: <{clip.media.title()}>", Slot(number)]
            text = f"</{clip.media.title()}>{_sampled(clip)}\n###"
        return (*segments, text + "".join(map(_turn, conversation.turns)) + "Assistant:")


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    role: Role = "all",
) -> Family:
    """Load the model in a folder of `config.json`, `*.safetensors` and `tokenizer.model`; None is the shipped one.

    `config.json` holds the sizes in the layout of `VideoChatConfig.to_json`, or by part (`vit`, `qformer`, `llama`).
    The tensors have the original names or ours, in `weights.safetensors` or in several files. The tokenizer may
    be in a subfolder `llama`. `generation_config.json`, in the format of transformers, sets the default sampling;
    without it, the default is that of the published demo.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    checkpoint = checkpoint or DEFAULT_CHECKPOINT
    saved = read_model(checkpoint, read_sizes=read_sizes, published_sampling=PUBLISHED_SAMPLING)
    family = build_family(
        saved,
        VideoChatNetwork,
        read_sentencepiece(tokenizer_of(checkpoint)),
        name=NAME,
        key_map=KEY_MAP,
        dtype=dtype,
        role=role,
        inputs=InputSpec(
            frames=FrameSpec(count=saved.config.num_frames, rule="videochat"),
            pixels=PixelSpec(size=saved.config.vision.image_size),
        ),
        template=VideoChatTemplate(),
    )
    del saved  # so that the pages of a weight are released when it is quantised
    return family.move_to(device, quantization=quantization, role=role)


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """Find and merge the published files; return what `reeltalk convert` writes, and the identity of the sources.

    Args:
        folder: holds the four published files and a LLaMA folder, or a whole model in `weights.safetensors`.
        parts: paths of files elsewhere: `vision`, `qformer`, `llama` (a folder), `videochat`, `config`.
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's dtype.

    Raises:
        WeightsError, TokenizerError: the files do not make up one VideoChat model.
    """
    source = read_whole(folder, parts, read_sizes) or read_published(folder, parts, ignored=ignored)
    return to_convert(NAME, blank(VideoChatNetwork, source.config), source, key_map=KEY_MAP, dtype=dtype)


def value_counts(size: str) -> ValueCounts:
    """Count the values of a published size, one of `SIZES`, without allocating memory."""
    config = SIZES[size]
    network = blank(VideoChatNetwork, config)
    encoder = network.visual_encoder
    global_blocks = num_parameters(encoder.gmhra) + encoder.gmhra_cls_token.numel()
    return count_values(
        network,
        modules={
            "visual encoder": num_parameters(encoder) - global_blocks,
            "GMHRA": global_blocks,
            "ln_vision": num_parameters(network.ln_vision),
            "Q-Former": num_parameters(network.qformer),
            "query tokens": network.query_tokens.numel() + network.extra_query_tokens.numel(),
            "llama_proj": num_parameters(network.llama_proj),
        },
        num_tokens=config.vision.num_tokens(config.num_frames),
        width=config.vision.width,
        mlp_width=config.vision.mlp_width,
    )


def _sampled(clip: Clip) -> str:
    """Return the prompt's sentence about the sampled frames; empty for an image."""
    if clip.media == "image":
        return ""
    seconds = ", ".join(_seconds(clip))
    return f" The video contains {len(clip.frame_indices)} frames sampled at {seconds} seconds."


def _seconds(clip: Clip) -> Iterator[str]:
    # Rounds as numpy does (times ten, to the nearest, over ten), as published: at 20 fps frame 1 is "0.0", where
    # Python's own round gives 0.1.
    return (str(float(np.round(np.float64(index / clip.fps), 1))) for index in clip.frame_indices)


def _turn(turn: Turn) -> str:
    """Return one turn with its separator. A question ends with a newline, an answer does not."""
    text = neutralise(turn.text)
    return f"Human: {text}\n###" if turn.role == "user" else f"Assistant: {_ended(text.strip())}###"


def _ended(text: str) -> str:
    """Add a space after a final `#`, which would otherwise merge with the separator that follows."""
    return f"{text} " if text.endswith("#") else text


def _spaced(markup: str) -> str:
    return " ".join(markup) if markup.startswith("#") else f"< {markup[1:]}"
