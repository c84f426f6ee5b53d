"""Video-ChatGPT (mbzuai-oryx): prompt, key map, sizes, the assembly of a loaded model.

The network itself is `model.families.video_chatgpt.network`. Prompt and numbers are those of the published demo; where
that lets the text of a user forge a turn or choose the video's place, ours does not.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from model.checkpoints.folder import Checkpoint, folder_digest, read_folder, read_sampling, tokenizer_of
from model.checkpoints.json_object import read_object
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.video_chatgpt.network import (
    NUM_TEMPORAL_TOKENS,
    ClipVisionConfig,
    VideoChatGPTConfig,
    VideoChatGPTNetwork,
)
from model.families.video_chatgpt.published import (
    PUBLISHED_7B,
    VIDEO_END,
    VIDEO_START,
    VIDEO_TOKENS,
    read_published,
    read_sizes,
)
from model.families.video_chatgpt.verification import video_chatgpt_stages
from model.family import Family, assemble, blank
from model.networks.llama import DecoderConfig
from model.plan import Blueprint, blueprint_of, num_parameters
from model.quantization import Quantization
from model.role import Role
from model.text.conversation import Conversation, Part, SpecialToken, VideoSlot
from model.text.sentencepiece import read_sentencepiece
from model.text.tokenizer import EOS, ByteTokenizer, Tokenizer, plain_tokenizer
from model.verification.stage import Finding
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap, WeightsError, checkpoint_digest, seeded

NAME = "video-chatgpt"
PUBLISHED_SAMPLING = SamplingParams(temperature=0.2, top_k=50, max_tokens=512)
"""The demo's. `top_k` is transformers' default of its day, which the demo never mentions."""

SIZES = {"7b": PUBLISHED_7B}
TINY = VideoChatGPTConfig(
    vision=ClipVisionConfig(image_size=56, patch_size=14, width=64, depth=3, num_heads=4, mlp_width=128),
    decoder=DecoderConfig(vocab_size=357, width=64, depth=2, num_heads=4, mlp_width=128),
    added_tokens=VIDEO_TOKENS,
)
TINY_SEED = 1
"""Of the weights that no checkpoint gives: the architecture in small. It has learned nothing, and answers noise."""

SYSTEM = (
    "You are Video-ChatGPT, a large vision-language assistant. "
    "You are able to understand the video content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "Follow the instructions carefully and explain your answers in detail based on the provided video."
)
"""The published system text, which lacks a space before `Follow`; a session's own text takes its place."""

_MARKUP = re.compile(
    r"(?:USER|ASSISTANT)(?=:)|</?(?:video|vid_patch|vid_start|vid_end|im_patch|im_start|im_end|unk|s)>"
)


def key_map(config: VideoChatGPTConfig) -> KeyMap:
    """The published names to ours, as they are once the published files are merged; our own pass unchanged.

    The vision tower's last layer and last norm are published, but nothing that the model uses depends on them.
    """
    unused_layer = config.vision.depth - 1
    return KeyMap(
        renames=(
            (r"^vision_model\.", "vision_tower."),
            (r"^model\.mm_projector\.", "mm_projector."),
            (r"^(model|lm_head)\.", r"language_model.\1."),
        ),
        ignored=(
            rf"vision_model\.encoder\.layers\.{unused_layer}\..*",
            r"vision_model\.post_layernorm\.(weight|bias)",
            r"vision_model\.embeddings\.position_ids",
            r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        ),
    )


def neutralise(text: str) -> str:
    """Text of a user's or a client's, so that it can forge neither a turn nor a special token.

    `USER:` becomes `USER :`, and `<vid_start>` becomes `< vid_start>`: reader and model still see what was meant.
    """
    return _MARKUP.sub(lambda found: f"< {found[0][1:]}" if found[0].startswith("<") else f"{found[0]} ", text)


class VideoChatGPTTemplate:
    """The published prompt, `video-chatgpt_v1`: `… USER: … ASSISTANT: …</s>USER: … ASSISTANT:`.

    The videos stand behind the first question, each on a line of its own; the original knows one.
    """

    stop = (EOS,)

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """The prompt as texts, special tokens and video slots, in order; it ends where the answer begins."""
        assert conversation.turns and conversation.turns[-1].role == "user", "a question comes last"
        parts: list[Part] = []
        text = f"{neutralise(conversation.system) or SYSTEM} "
        clips = range(len(conversation.clips))
        for turn in conversation.turns:
            if turn.role == "assistant":
                parts += [f"{text}ASSISTANT: {neutralise(turn.text.strip())}", SpecialToken(EOS)]
                text = ""
                continue
            text += f"USER: {neutralise(turn.text)}"
            for number in clips:
                parts += [f"{text}\n", SpecialToken(VIDEO_START), VideoSlot(number), SpecialToken(VIDEO_END)]
                text = ""
            text += " "
            clips = range(0)
        return (*parts, f"{text}ASSISTANT:")


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    role: Role = "all",
) -> Family:
    """The model in a folder; None is a small one of seeded random values, which answers noise.

    The folder holds `config.json`, with the sizes as `VideoChatGPTConfig.to_json` gives them, `*.safetensors`
    with published names or ours, LLaMA's `tokenizer.model`, and perhaps `generation_config.json`. A folder of
    reference tensors, whose `config.json` has sizes under `clip` and `llm` and whose tokens are bytes, will do.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    if checkpoint is None:
        config, tokenizer, sampling = TINY, plain_tokenizer(added=VIDEO_TOKENS), PUBLISHED_SAMPLING
        tensors = seeded(blank(VideoChatGPTNetwork, TINY), seed=TINY_SEED)
        digest = checkpoint_digest(tensors, TINY.to_json())
    else:
        config = read_sizes(checkpoint / "config.json")
        tokenizer, tensors = _tokenizer(checkpoint, config), read_folder(checkpoint)
        sampling = read_sampling(checkpoint, published=PUBLISHED_SAMPLING)
        digest = folder_digest(checkpoint, tensors, config.to_json())
    family = Family(
        assemble(blank(VideoChatGPTNetwork, config), tensors, key_map=key_map(config), dtype=dtype, role=role),
        tokenizer,
        name=NAME,
        checkpoint_digest=digest,
        frame_spec=FrameSpec(count=NUM_TEMPORAL_TOKENS, rule="video-chatgpt"),
        pixel_spec=PixelSpec(size=config.vision.image_size, fit="nearest"),
        template=VideoChatGPTTemplate(),
        default_sampling=sampling,
    )
    del tensors  # what no module took leaves memory before anything moves
    return family.place(device, quantization=quantization, role=role)


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """What `reeltalk convert` is to write, and what names its sources.

    Args:
        folder: holds the published file and two folders, or a whole model in `weights.safetensors`.
        parts: what is elsewhere: `vision` (a folder), `llama` (a folder), `video`.
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's.

    Raises:
        WeightsError, TokenizerError: the files do not make up one Video-ChatGPT model.
    """
    source = read_whole(folder, parts, read_sizes) or read_published(folder, parts, ignored=ignored)
    network = blank(VideoChatGPTNetwork, source.config)
    return to_convert(NAME, network, source, key_map=key_map(source.config), dtype=dtype)


def verify_stages(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype, quantization: Quantization | None
) -> Iterator[Finding]:
    """Every stage of the model in a folder, on the inputs that lie beside it.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's.
    """
    family = load(checkpoint=folder, device=device, dtype=dtype, quantization=quantization)
    return video_chatgpt_stages(family, folder)


def blueprint(size: str) -> Blueprint:
    """What a published size is made of; `size` is one of `SIZES`. No memory is taken."""
    config = SIZES[size]
    network = blank(VideoChatGPTNetwork, config)
    num_tokens = NUM_TEMPORAL_TOKENS * (config.vision.num_patches + 1)
    return blueprint_of(
        network,
        modules={
            "CLIP": num_parameters(network.vision_tower),
            "mm_projector": num_parameters(network.mm_projector),
        },
        encoder_values_per_clip=num_tokens * (2 * config.vision.mlp_width + 6 * config.vision.width),
    )


def _tokenizer(checkpoint: Path, config: VideoChatGPTConfig) -> Tokenizer:
    """LLaMA's with the added tokens; of reference tensors, whose sizes tell ids of tokens, one of bytes."""
    told = read_object(checkpoint / "config.json").get("special_token_ids")
    if told is None:
        tokenizer = read_sentencepiece(tokenizer_of(checkpoint), added=config.added_tokens)
    else:
        tokenizer = ByteTokenizer(added=config.added_tokens)
        if {name: tokenizer.special_id(name) for name in config.added_tokens} != told:
            raise WeightsError("The special tokens do not follow the bytes.")
    for name in VIDEO_TOKENS:
        tokenizer.special_id(name)
    return tokenizer
