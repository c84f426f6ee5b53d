"""VideoChat (Ask-Anything `video_chat` by OpenGVLab): prompt, key map, sizes, the assembly of a loaded model.

The network itself is `model.families.videochat.network`. Prompt and numbers are those of the published demo; where
that lets the text of a user forge a turn, ours does not.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from model.checkpoints.folder import Checkpoint, folder_digest, read_folder, read_sampling, tokenizer_of
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.videochat.network import VideoChatNetwork
from model.families.videochat.published import BUFFERS, PUBLISHED_7B, PUBLISHED_13B, read_published, read_sizes
from model.families.videochat.verification import videochat_stages
from model.family import Family, assemble, blank
from model.plan import Blueprint, blueprint_of, num_parameters
from model.quantization import Quantization
from model.role import Role
from model.text.conversation import Clip, Conversation, Turn, VideoSlot
from model.text.sentencepiece import read_sentencepiece
from model.verification.stage import Finding
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap

NAME = "videochat"
KEY_MAP = KeyMap(
    renames=(
        (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
        (r"^Qformer\.bert\.", "qformer."),
        (r"attention\.self\.", "attention.attention."),
    ),
    ignored=BUFFERS,
    squeezed={"visual_encoder.patch_embed.proj.weight": (5, 2)},
)
"""The original model's state dict to ours; our own names pass unchanged."""

PUBLISHED_SAMPLING = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, max_tokens=1000)
"""The demo's. `top_k` is transformers' default of its day, which the demo never mentions."""

SIZES = {"7b": PUBLISHED_7B, "13b": PUBLISHED_13B}
DEFAULT_CHECKPOINT = Path(__file__).parents[2] / "tiny" / "weights"
"""The small model that ships with the package; `model.tiny` trains it."""

_MARKUP = re.compile(r"#{3,}|</?(?:Video|Image|VideoHere|ImageHere|unk|s)>")


def neutralise(text: str) -> str:
    """Text of a user's or a client's, so that it can forge neither a turn nor a place for a video.

    What the prompt's format means by itself is broken up by spaces: `###` becomes `# # #`, `<Video>` becomes
    `< Video>`. Reader and model still see what was meant; the tokens of a separator cannot arise from it.
    """
    return _MARKUP.sub(lambda found: _spaced(found[0]), text)


class VideoChatTemplate:
    """The published prompt: `###Human: …\\n###Assistant: …`; each video is a message before all questions."""

    stop = ("###",)

    def render(self, conversation: Conversation) -> tuple[str | VideoSlot, ...]:
        """The prompt as text segments and video slots, in order; it ends where the answer begins."""
        assert conversation.turns and conversation.turns[-1].role == "user", "a question comes last"
        segments: list[str | VideoSlot] = []
        text = _closed(neutralise(conversation.system)) + "###"
        for number, clip in enumerate(conversation.clips):
            segments += [f"{text}Human: <{clip.media.title()}>", VideoSlot(number)]
            text = f"</{clip.media.title()}>{_sampled(clip)}\n###"
        return (*segments, text + "".join(map(_said, conversation.turns)) + "Assistant:")


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    role: Role = "all",
) -> Family:
    """The model in a folder of `config.json`, `*.safetensors` and `tokenizer.model`; None is the one that ships.

    `config.json` holds the sizes as `VideoChatConfig.to_json` gives them, or by part (`vit`, `qformer`, `llama`);
    the tensors carry the original names or ours, in `weights.safetensors` or in several files. The tokenizer may
    lie in a subfolder `llama`. `generation_config.json`, as transformers writes it, may say how answers are
    sampled by default; without it they are sampled as the published demo does.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    checkpoint = checkpoint or DEFAULT_CHECKPOINT
    config = read_sizes(checkpoint / "config.json")
    tokenizer = read_sentencepiece(tokenizer_of(checkpoint))
    tensors = read_folder(checkpoint)
    family = Family(
        assemble(blank(VideoChatNetwork, config), tensors, key_map=KEY_MAP, dtype=dtype, role=role),
        tokenizer,
        name=NAME,
        checkpoint_digest=folder_digest(checkpoint, tensors, config.to_json()),
        frame_spec=FrameSpec(count=config.num_frames, rule="videochat"),
        pixel_spec=PixelSpec(size=config.vision.image_size),
        template=VideoChatTemplate(),
        default_sampling=read_sampling(checkpoint, published=PUBLISHED_SAMPLING),
    )
    del tensors  # so that a weight's pages leave memory when it is quantised
    return family.place(device, quantization=quantization, role=role)


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """What `reeltalk convert` is to write, and what names its sources.

    Args:
        folder: holds the four published files and a LLaMA folder, or a whole model in `weights.safetensors`.
        parts: files that are elsewhere: `vision`, `qformer`, `llama` (a folder), `videochat`, `config`.
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's.

    Raises:
        WeightsError, TokenizerError: the files do not make up one VideoChat model.
    """
    source = read_whole(folder, parts, read_sizes) or read_published(folder, parts, ignored=ignored)
    return to_convert(NAME, blank(VideoChatNetwork, source.config), source, key_map=KEY_MAP, dtype=dtype)


def verify_stages(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype, quantization: Quantization | None
) -> Iterator[Finding]:
    """Every stage of the model in a folder, on the inputs that lie beside it.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's.
    """
    family = load(checkpoint=folder, device=device, dtype=dtype, quantization=quantization)
    return videochat_stages(family, folder)


def blueprint(size: str) -> Blueprint:
    """What a published size is made of; `size` is one of `SIZES`. No memory is taken."""
    config = SIZES[size]
    network = blank(VideoChatNetwork, config)
    encoder = network.visual_encoder
    global_blocks = num_parameters(encoder.gmhra) + encoder.gmhra_cls_token.numel()
    num_tokens = config.vision.num_tokens(config.num_frames)
    return blueprint_of(
        network,
        modules={
            "visual encoder": num_parameters(encoder) - global_blocks,
            "GMHRA": global_blocks,
            "ln_vision": num_parameters(network.ln_vision),
            "Q-Former": num_parameters(network.qformer),
            "query tokens": network.query_tokens.numel() + network.extra_query_tokens.numel(),
            "llama_proj": num_parameters(network.llama_proj),
        },
        encoder_values_per_clip=num_tokens * (2 * config.vision.mlp_width + 6 * config.vision.width),
    )


def _sampled(clip: Clip) -> str:
    """What the prompt says of a clip's moments; nothing of a still picture."""
    if clip.media == "image":
        return ""
    seconds = ", ".join(_seconds(clip))
    return f" The video contains {len(clip.frame_indices)} frames sampled at {seconds} seconds."


def _seconds(clip: Clip) -> Iterator[str]:
    # numpy's rounding (times ten, to the nearest, over ten), as published: at 20 fps frame 1 is "0.0", where
    # Python's own round says 0.1.
    return (str(float(np.round(np.float64(index / clip.fps), 1))) for index in clip.frame_indices)


def _said(turn: Turn) -> str:
    """One turn up to and with its separator. A question ends its line, an answer does not."""
    text = neutralise(turn.text)
    return f"Human: {text}\n###" if turn.role == "user" else f"Assistant: {_closed(text.strip())}###"


def _closed(text: str) -> str:
    """A space after a `#` that would otherwise run into the separator behind it."""
    return f"{text} " if text.endswith("#") else text


def _spaced(markup: str) -> str:
    return " ".join(markup) if markup.startswith("#") else f"< {markup[1:]}"
