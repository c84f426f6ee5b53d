"""VideoChat (Ask-Anything `video_chat` by OpenGVLab): prompt, key map, sizes, the assembly of a loaded model.

The network itself is `model.networks.videochat`. Prompt and numbers are those of the published demo; where
that lets the text of a user forge a turn, ours does not.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import read_sampling, read_sizes, read_tensors
from model.conversation import Clip, Conversation, Template, Turn, VideoSlot
from model.engine.sampling_params import SamplingParams
from model.family import tokenize_segments
from model.networks.eva_vit import VisionConfig
from model.networks.llama import DecoderConfig
from model.networks.videochat import QFormerConfig, VideoChatConfig, VideoChatNetwork
from model.pixels import PixelSpec
from model.sentencepiece import read_sentencepiece
from model.tokenizer import Tokenizer
from model.video import FrameSpec
from model.weights import KeyMap, WeightsError, checkpoint_digest, load_strict

KEY_MAP = KeyMap(
    renames=(
        (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
        (r"^Qformer\.bert\.", "qformer."),
        (r"attention\.self\.", "attention.attention."),
    ),
    ignored=(r"Qformer\.bert\.embeddings\.position_ids", r"llama_model\..*\.rotary_emb\.inv_freq"),
    squeezed={"visual_encoder.patch_embed.proj.weight": (5, 2)},
)
"""The original model's state dict to ours; our own names pass unchanged."""

_PUBLISHED_VISION = VisionConfig(image_size=224, patch_size=14, width=1408, depth=39, num_heads=16, num_global_blocks=8)
_PUBLISHED_QFORMER = QFormerConfig(width=768, depth=12, num_heads=12, mlp_width=3072)
PUBLISHED_7B = VideoChatConfig(
    num_frames=8,
    vision=_PUBLISHED_VISION,
    qformer=_PUBLISHED_QFORMER,
    decoder=DecoderConfig(vocab_size=32001, width=4096, depth=32, num_heads=32, mlp_width=11008),
)
PUBLISHED_13B = VideoChatConfig(
    num_frames=8,
    vision=_PUBLISHED_VISION,
    qformer=_PUBLISHED_QFORMER,
    decoder=DecoderConfig(vocab_size=32001, width=5120, depth=40, num_heads=40, mlp_width=13824),
)
PUBLISHED_SAMPLING = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, max_tokens=1000)
"""The demo's. `top_k` is transformers' default of its day, which the demo never mentions."""

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "tiny" / "weights"
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


class VideoChat:
    """One loaded VideoChat model on one device; implements `model.family.Family`."""

    name = "videochat"

    def __init__(
        self,
        network: VideoChatNetwork,
        tokenizer: Tokenizer,
        *,
        digest: str,
        default_sampling: SamplingParams,
    ) -> None:
        config = network.config
        self.checkpoint_digest = digest
        self.dtype: torch.dtype = network.llama_proj.weight.dtype
        self.frame_spec = FrameSpec(count=config.num_frames, rule="videochat")
        self.pixel_spec = PixelSpec(size=config.vision.image_size)
        self.template: Template = VideoChatTemplate()
        self.default_sampling = default_sampling
        self.tokenizer = tokenizer
        self.language_model = network.llama_model
        self.feature_shape = config.feature_shape
        self.num_video_tokens = config.feature_shape[0]
        self.max_model_len = config.decoder.max_positions
        self.num_parameters = sum(parameter.numel() for parameter in network.parameters())
        self._network = network
        self._device = network.llama_proj.weight.device

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W], normalised, to features [B, *feature_shape]; any T from 1 on."""
        with torch.no_grad():
            return self._network.encode(pixel_values.to(self._device, self.dtype))

    def project(self, features: Tensor) -> Tensor:
        """Features [*feature_shape] to video tokens [num_video_tokens, hidden]."""
        with torch.no_grad():
            return self._network.project(features.to(self._device, self.dtype))

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...] | VideoSlot, ...]:
        """The rendered prompt in token ids, segment by segment."""
        return tokenize_segments(self.tokenizer, self.template.render(conversation))


def load(*, checkpoint: Path | None, device: torch.device | str, dtype: torch.dtype | None) -> VideoChat:
    """The model in a folder of `config.json`, `*.safetensors` and `tokenizer.model`; None is the one that ships.

    `config.json` holds the sizes as `VideoChatConfig.to_json` gives them; the tensors carry the original
    names or ours, in one file or several. `generation_config.json`, as transformers writes it, may say how
    answers are sampled by default; without it they are sampled as the published demo does.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's.
    """
    checkpoint = checkpoint or DEFAULT_CHECKPOINT
    config, tokenizer = _read_config(checkpoint), _read_tokenizer(checkpoint)
    sampling = read_sampling(checkpoint, published=PUBLISHED_SAMPLING)
    tensors = read_tensors(checkpoint)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise WeightsError("The tokenizer has more pieces than the language model has rows.")
    digest = checkpoint_digest(tensors, config.to_json())
    network = assemble(config, tensors, device=device, dtype=dtype or torch.float32)
    return VideoChat(network, tokenizer, digest=digest, default_sampling=sampling)


def assemble(
    config: VideoChatConfig, tensors: dict[str, Tensor], *, device: torch.device | str, dtype: torch.dtype
) -> VideoChatNetwork:
    """A network for inference out of a state dict in published names (or ours).

    Raises:
        WeightsError: the tensors do not cover every parameter exactly once.
    """
    network = _blank(config)
    load_strict(network, tensors, key_map=KEY_MAP, dtype=dtype)
    network.restore_rotary()
    return network.requires_grad_(False).eval().to(device)


def _blank(config: VideoChatConfig) -> VideoChatNetwork:
    # On the meta device: no memory, and no initial values that a checkpoint would replace at once.
    with torch.device("meta"):
        return VideoChatNetwork(config)


def _read_config(checkpoint: Path) -> VideoChatConfig:
    try:
        return VideoChatConfig.from_json(read_sizes(checkpoint))
    except (TypeError, KeyError, AssertionError) as error:
        raise WeightsError(f"{checkpoint.name} has no config.json with the sizes of a VideoChat model.") from error


def _read_tokenizer(checkpoint: Path) -> Tokenizer:
    return read_sentencepiece(checkpoint / "tokenizer.model")


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
