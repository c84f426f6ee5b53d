"""VideoChat (Ask-Anything `video_chat` by OpenGVLab): prompt, key map, sizes, the assembly of a loaded model.

The network itself is `model.networks.videochat`. Prompt and numbers are those of the published demo; where
that lets the text of a user forge a turn, ours does not.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoints.converted import read_sampling
from model.checkpoints.folder import WHOLE, Checkpoint, folder_digest, read_folder, stamps
from model.checkpoints.videochat import BUFFERS, PUBLISHED_7B, PUBLISHED_13B, find_published, merge, read_sizes
from model.conversation import Clip, Conversation, Template, Turn, VideoSlot
from model.engine.sampling_params import SamplingParams
from model.family import tokenize_segments
from model.networks.videochat import VideoChatConfig, VideoChatNetwork
from model.pixels import PixelSpec
from model.plan import Blueprint, num_parameters
from model.quantization import Quantization, linear_layers, quantize
from model.sentencepiece import read_sentencepiece
from model.tokenizer import Tokenizer
from model.verification.stage import Finding
from model.verification.videochat import videochat_stages
from model.video import FrameSpec
from model.weights import KeyMap, WeightsError, cover, load_strict

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
        self.num_parameters = num_parameters(network)
        self.network = network
        self._device = network.llama_proj.weight.device

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W], normalised, to features [B, *feature_shape]; any T from 1 on."""
        with torch.no_grad():
            return self.network.encode(pixel_values.to(self._device, self.dtype))

    def project(self, features: Tensor) -> Tensor:
        """Features [*feature_shape] to video tokens [num_video_tokens, hidden]."""
        with torch.no_grad():
            return self.network.project(features.to(self._device, self.dtype))

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...] | VideoSlot, ...]:
        """The rendered prompt in token ids, segment by segment."""
        return tokenize_segments(self.tokenizer, self.template.render(conversation))


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
) -> VideoChat:
    """The model in a folder of `config.json`, `*.safetensors` and `tokenizer.model`; None is the one that ships.

    `config.json` holds the sizes as `VideoChatConfig.to_json` gives them, or by part (`vit`, `qformer`, `llama`);
    the tensors carry the original names or ours, in `weights.safetensors` or in several files. The tokenizer may
    lie in a subfolder `llama`. `generation_config.json`, as transformers writes it, may say how answers are
    sampled by default; without it they are sampled as the published demo does.

    On the CPU, tensors that are in `dtype` already stay mapped from their files. With a `quantization` the language
    model's weights reach `device` in fewer bits; features and their digest stay what they are.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    checkpoint = checkpoint or DEFAULT_CHECKPOINT
    config = read_sizes(checkpoint / "config.json")
    tokenizer, sampling = (
        read_sentencepiece(_tokenizer_of(checkpoint)),
        read_sampling(checkpoint, published=PUBLISHED_SAMPLING),
    )
    tensors = read_folder(checkpoint)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise WeightsError("The tokenizer has more pieces than the language model has rows.")
    digest = folder_digest(checkpoint, tensors, config.to_json())
    network = assemble(config, tensors, device="cpu", dtype=dtype)
    total = num_parameters(network)
    if quantization is not None:
        quantize(network.llama_model, quantization, device=device)
    family = VideoChat(network.to(device), tokenizer, digest=digest, default_sampling=sampling)
    family.num_parameters = total  # of 4-bit weights, two are stored as one
    return family


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
        WeightsError: the files do not make up one VideoChat model.
    """
    if folder and not parts and (folder / WHOLE).is_file():
        config, tensors, tokenizer = read_sizes(folder / "config.json"), read_folder(folder), _tokenizer_of(folder)
        origin = stamps((folder / WHOLE, tokenizer))
    else:
        files = find_published(folder, parts)
        config, tensors = merge(files, ignored=ignored)
        tokenizer, origin = files.llama / "tokenizer.model", stamps(files.all_files())
    read_sentencepiece(tokenizer)
    with torch.device("meta"):
        covered = cover(VideoChatNetwork(config), tensors, key_map=KEY_MAP)
    wanted = {key: tensors[key] for key, _ in covered.values()}
    beside = {"tokenizer.model": tokenizer}
    checkpoint = Checkpoint(family="videochat", sizes=config.to_json(), tensors=wanted, dtype=dtype, beside=beside)
    return checkpoint, origin


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
    network = _blank(config)
    vision, decoder = network.visual_encoder, config.decoder
    num_tokens = config.vision.num_tokens(config.num_frames)
    global_blocks = num_parameters(vision.gmhra) + vision.gmhra_cls_token.numel()
    return Blueprint(
        modules={
            "visual encoder": num_parameters(vision) - global_blocks,
            "GMHRA": global_blocks,
            "ln_vision": num_parameters(network.ln_vision),
            "Q-Former": num_parameters(network.qformer),
            "query tokens": network.query_tokens.numel() + network.extra_query_tokens.numel(),
            "llama_proj": num_parameters(network.llama_proj),
            "LLaMA": num_parameters(network.llama_model),
        },
        quantizable="LLaMA",
        linear_shapes=[(linear.out_features, linear.in_features) for linear in linear_layers(network.llama_model)],
        kv_values_per_token=2 * decoder.depth * decoder.width,
        max_model_len=decoder.max_positions,
        num_video_tokens=config.feature_shape[0],
        encoder_values_per_clip=num_tokens * (2 * config.vision.mlp_width + 6 * config.vision.width),
    )


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


def _tokenizer_of(folder: Path) -> Path:
    own = folder / "tokenizer.model"
    return own if own.is_file() else folder / "llama" / "tokenizer.model"


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
