"""Video-ChatGPT (mbzuai-oryx): prompt, key map, sizes, the assembly of a loaded model, its stages one by one.

The network itself is `model.networks.video_chatgpt`. Prompt and numbers are those of the published demo; where
that lets the text of a user forge a turn or choose the video's place, ours does not.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from model.checkpoints.converted import read_sampling, read_sizes, read_tensors
from model.conversation import Conversation, Part, SpecialToken, Template, VideoSlot
from model.engine.sampling_params import SamplingParams
from model.family import tokenize_segments
from model.networks.llama import DecoderConfig
from model.networks.video_chatgpt import (
    NUM_TEMPORAL_TOKENS,
    ClipVisionConfig,
    VideoChatGPTConfig,
    VideoChatGPTNetwork,
)
from model.pixels import PixelSpec
from model.plan import num_parameters
from model.quantization import Quantization, quantize
from model.sentencepiece import read_sentencepiece
from model.tokenizer import EOS, ByteTokenizer, Tokenizer, plain_tokenizer
from model.verification.stage import Stage
from model.video import FrameSpec
from model.weights import KeyMap, WeightsError, checkpoint_digest, load_strict, read_safetensors, seeded

VIDEO_PATCH, VIDEO_START, VIDEO_END = "<vid_patch>", "<vid_start>", "<vid_end>"
_VIDEO_TOKENS = (VIDEO_PATCH, VIDEO_START, VIDEO_END)

PUBLISHED_7B = VideoChatGPTConfig(
    vision=ClipVisionConfig(image_size=224, patch_size=14, width=1024, depth=24, num_heads=16, mlp_width=4096),
    decoder=DecoderConfig(vocab_size=32006, width=4096, depth=32, num_heads=32, mlp_width=11008),
    added_tokens=("<im_patch>", "<im_start>", "<im_end>", *_VIDEO_TOKENS),
)
"""openai/clip-vit-large-patch14 and LLaVA-Lightning-7B-v1-1, to whose tokens Video-ChatGPT adds three."""
PUBLISHED_SAMPLING = SamplingParams(temperature=0.2, top_k=50, max_tokens=512)
"""The demo's. `top_k` is transformers' default of its day, which the demo never mentions."""

TINY = VideoChatGPTConfig(
    vision=ClipVisionConfig(image_size=56, patch_size=14, width=64, depth=3, num_heads=4, mlp_width=128),
    decoder=DecoderConfig(vocab_size=357, width=64, depth=2, num_heads=4, mlp_width=128),
    added_tokens=_VIDEO_TOKENS,
)
TINY_SEED = 1
"""Of the weights that no checkpoint gives: the architecture in small. It has learned nothing, and answers noise."""

NUM_ANSWER_TOKENS = 16
"""Length of the greedy answer among the stages that are verified."""

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

_PROJECTION = ("model.mm_projector.weight", "model.mm_projector.bias")
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BUFFERS = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"vision_model\.embeddings\.position_ids")
LANGUAGE_FILE = KeyMap(ignored=(*_BUFFERS, *map(re.escape, (_EMBEDDINGS, *_PROJECTION))))
"""LLaVA-Lightning-7B-v1-1: its projection is of pictures, and the video file has newer embeddings."""
VISION_FILE = KeyMap(ignored=(*_BUFFERS, r"text_model\..*", r"(visual|text)_projection\.weight", "logit_scale"))
"""openai/clip-vit-large-patch14: the tower alone is wanted."""
VIDEO_FILE_KEYS = frozenset({_EMBEDDINGS, *_PROJECTION})
"""`video_chatgpt-7B.bin` holds these, all of which replace what the language file may have."""


def merge_published(
    *, language: Mapping[str, Tensor], video: Mapping[str, Tensor], vision: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One state dict for `assemble` out of those of the three published files.

    The head gets a row of zeros for each token that the video file adds: none was ever trained, and the original
    draws them at random.

    Raises:
        WeightsError: the video file holds something else, or the language file has no head for its tokens.
    """
    if video.keys() != VIDEO_FILE_KEYS:
        raise WeightsError(f"The video file must hold {', '.join(sorted(VIDEO_FILE_KEYS))} and nothing else.")
    if _HEAD not in language:
        raise WeightsError(f"The language file lacks {_HEAD}.")
    head = language[_HEAD]
    num_added = len(video[_EMBEDDINGS]) - len(head)
    if num_added < 0:
        raise WeightsError("The language file has more tokens than the video file: they do not belong together.")
    kept = {
        key: tensor
        for names, tensors in ((LANGUAGE_FILE, language), (VISION_FILE, vision))
        for key, tensor in tensors.items()
        if names.target(key) is not None
    }
    return {**kept, **video, _HEAD: functional.pad(head, (0, 0, 0, num_added))}


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
            *_BUFFERS,
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


class VideoChatGPT:
    """One loaded Video-ChatGPT model on one device; implements `model.family.Family`."""

    name = "video-chatgpt"

    def __init__(
        self,
        network: VideoChatGPTNetwork,
        tokenizer: Tokenizer,
        *,
        digest: str,
        default_sampling: SamplingParams,
    ) -> None:
        config = network.config
        self.checkpoint_digest = digest
        self.dtype: torch.dtype = network.mm_projector.weight.dtype
        self.frame_spec = FrameSpec(count=NUM_TEMPORAL_TOKENS, rule="video-chatgpt")
        self.pixel_spec = PixelSpec(size=config.vision.image_size, fit="nearest")
        self.template: Template = VideoChatGPTTemplate()
        self.default_sampling = default_sampling
        self.tokenizer = tokenizer
        self.language_model = network.language_model
        self.feature_shape = config.feature_shape
        self.num_video_tokens = config.feature_shape[0]
        self.max_model_len = config.decoder.max_positions
        self.num_parameters = num_parameters(network)
        self._network = network
        self._device = network.mm_projector.weight.device

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W], normalised, to features [B, *feature_shape]; T from 1 to 100."""
        with torch.no_grad():
            return self._network.encode(pixel_values.to(self._device, self.dtype))

    def project(self, features: Tensor) -> Tensor:
        """Features [*feature_shape] to video tokens [num_video_tokens, hidden]."""
        with torch.no_grad():
            return self._network.project(features.to(self._device, self.dtype))

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...] | VideoSlot, ...]:
        """The rendered prompt in token ids, segment by segment."""
        return tokenize_segments(self.tokenizer, self.template.render(conversation))


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
) -> VideoChatGPT:
    """The model in a folder; None is a small one of seeded random values, which answers noise.

    The folder holds `config.json`, with the sizes as `VideoChatGPTConfig.to_json` gives them, `*.safetensors`
    with published names or ours, LLaMA's `tokenizer.model`, and perhaps `generation_config.json`. A folder of
    reference tensors, whose `config.json` has sizes under `clip` and `llm` and whose tokens are bytes, will do.
    With a `quantization` the language model's weights reach `device` in fewer bits; features and their digest stay
    what they are.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    if checkpoint is None:
        contents, sampling = _tiny(), PUBLISHED_SAMPLING
    else:
        contents = _read_contents(checkpoint)
        sampling = read_sampling(checkpoint, published=PUBLISHED_SAMPLING)
    config, tokenizer, tensors = contents
    digest = checkpoint_digest(tensors, config.to_json())
    network = assemble(config, tensors, device="cpu", dtype=dtype)
    total = num_parameters(network)
    if quantization is not None:
        quantize(network.language_model, quantization, device=device)
    family = VideoChatGPT(network.to(device), tokenizer, digest=digest, default_sampling=sampling)
    family.num_parameters = total  # of 4-bit weights, two are stored as one
    return family


def assemble(
    config: VideoChatGPTConfig, tensors: Mapping[str, Tensor], *, device: torch.device | str, dtype: torch.dtype
) -> VideoChatGPTNetwork:
    """A network for inference out of a state dict in published names (or ours).

    Raises:
        WeightsError: the tensors do not cover every parameter exactly once.
    """
    network = _blank(config)
    load_strict(network, tensors, key_map=key_map(config), dtype=dtype)
    network.restore_buffers()
    return network.requires_grad_(False).eval().to(device)


def verify_stages(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype, quantization: Quantization | None
) -> Iterator[Stage]:
    """What each stage gives for the inputs of a folder of reference tensors, under the names used there.

    With T frames of S patches of width C, L tokens of prompt, hidden size D and vocabulary V: `frame_features`
    [T, S, C], `spatio_temporal_features` [100 + S, C] and its `_half` in float16, `video_tokens` [100 + S, D],
    `inputs_embeds` [1, L, D], `logits_first` [V], and the int64 `greedy_ids` of an answer.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete or damaged.
    """
    family = load(checkpoint=folder, device=device, dtype=dtype, quantization=quantization)
    inputs = _read_inputs(folder, device)
    with torch.inference_mode():
        yield from _stages(family, inputs["pixel_values"].to(family.dtype), inputs["input_ids"])


def _stages(family: VideoChatGPT, pixel_values: Tensor, input_ids: Tensor) -> Iterator[Stage]:
    network = family._network
    patches = network.see(pixel_values.unsqueeze(0))
    yield Stage(name="frame_features", tensor=patches[0])
    features = network.pool(patches)[0]
    yield Stage(name="spatio_temporal_features", tensor=features)
    yield Stage(name="spatio_temporal_features_half", tensor=features.half())
    video_tokens = network.project(features)
    yield Stage(name="video_tokens", tensor=video_tokens)
    start, end = map(family.tokenizer.special_id, (VIDEO_START, VIDEO_END))
    inputs_embeds = _splice(network.language_model, input_ids, video_tokens, markers=(start, end))
    yield Stage(name="inputs_embeds", tensor=inputs_embeds)
    logits, ids = _answer_greedily(network.language_model, inputs_embeds, eos_id=family.tokenizer.eos_id)
    yield Stage(name="logits_first", tensor=logits, is_said=True)
    yield Stage(name="greedy_ids", tensor=ids, is_choice=True, is_said=True)


def _splice(model: LlamaForCausalLM, input_ids: Tensor, video_tokens: Tensor, *, markers: tuple[int, int]) -> Tensor:
    """The embeddings [1, L, D] of `input_ids` [1, L], those between the two markers replaced by `video_tokens`."""
    row = input_ids[0].tolist()
    if markers[0] not in row:
        raise WeightsError("The prompt among the inputs has no place for a video.")
    first = row.index(markers[0]) + 1
    last = first + len(video_tokens)
    if row[last : last + 1] != [markers[1]]:
        raise WeightsError("The prompt among the inputs has no place for a video of this many tokens.")
    embeddings: Tensor = model.get_input_embeddings()(input_ids)
    return torch.cat((embeddings[:, :first], video_tokens.unsqueeze(0), embeddings[:, last:]), dim=1)


def _answer_greedily(model: LlamaForCausalLM, inputs_embeds: Tensor, *, eos_id: int) -> tuple[Tensor, Tensor]:
    """The logits [V] of the first token, and the ids of an answer up to and with the end of the sequence."""
    step = model(inputs_embeds=inputs_embeds, use_cache=True)
    first: Tensor = step.logits[0, -1]
    ids = [int(first.argmax())]
    while len(ids) < NUM_ANSWER_TOKENS and ids[-1] != eos_id:
        latest = torch.tensor([ids[-1:]], device=inputs_embeds.device)
        step = model(input_ids=latest, past_key_values=step.past_key_values, use_cache=True)
        ids.append(int(step.logits[0, -1].argmax()))
    return first, torch.tensor(ids)


def _blank(config: VideoChatGPTConfig) -> VideoChatGPTNetwork:
    # On the meta device: no memory, and no initial values that a checkpoint would replace at once.
    with torch.device("meta"):
        return VideoChatGPTNetwork(config)


_Contents = tuple[VideoChatGPTConfig, Tokenizer, dict[str, Tensor]]


def _tiny() -> _Contents:
    return TINY, plain_tokenizer(added=TINY.added_tokens), seeded(_blank(TINY), seed=TINY_SEED)


def _read_contents(checkpoint: Path) -> _Contents:
    sizes = read_sizes(checkpoint)
    read = _read_reference if {"clip", "llm"} <= sizes.keys() else _read_folder
    config, tokenizer, tensors = read(checkpoint, sizes)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise WeightsError("The tokenizer has more pieces than the language model has rows.")
    for name in _VIDEO_TOKENS:
        tokenizer.special_id(name)
    return config, tokenizer, tensors


def _read_folder(checkpoint: Path, sizes: dict[str, Any]) -> _Contents:
    try:
        config = VideoChatGPTConfig.from_json(sizes)
    except (TypeError, KeyError) as error:
        raise _no_sizes(checkpoint) from error
    tokenizer = read_sentencepiece(checkpoint / "tokenizer.model", added=config.added_tokens)
    return config, tokenizer, read_tensors(checkpoint)


def _read_reference(checkpoint: Path, sizes: dict[str, Any]) -> _Contents:
    """A folder of reference tensors: other words for the sizes, and a token for each byte."""
    try:
        config = _reference_config(sizes["clip"], sizes["llm"], sizes["special_token_ids"])
    except (TypeError, KeyError, AttributeError) as error:
        raise _no_sizes(checkpoint) from error
    tokenizer = ByteTokenizer(added=config.added_tokens)
    if {name: tokenizer.special_id(name) for name in config.added_tokens} != sizes["special_token_ids"]:
        raise WeightsError("The special tokens do not follow the bytes.")
    return config, tokenizer, read_safetensors(checkpoint / "weights.safetensors")


def _reference_config(clip: dict[str, Any], llm: dict[str, Any], special_ids: dict[str, int]) -> VideoChatGPTConfig:
    return VideoChatGPTConfig(
        vision=ClipVisionConfig(
            image_size=clip["image_size"],
            patch_size=clip["patch_size"],
            width=clip["hidden_size"],
            depth=clip["num_hidden_layers"],
            num_heads=clip["num_attention_heads"],
            mlp_width=clip["intermediate_size"],
        ),
        decoder=DecoderConfig(
            vocab_size=llm["vocab_size"],
            width=llm["hidden_size"],
            depth=llm["num_hidden_layers"],
            num_heads=llm["num_attention_heads"],
            mlp_width=llm["intermediate_size"],
            max_positions=llm["max_position_embeddings"],
            rms_eps=llm["rms_norm_eps"],
        ),
        added_tokens=tuple(sorted(special_ids, key=special_ids.__getitem__)),
    )


def _read_inputs(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    inputs = read_safetensors(folder / "inputs.safetensors")
    if missing := {"pixel_values", "input_ids"} - inputs.keys():
        raise WeightsError(f"inputs.safetensors lacks {min(missing)}.")
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _no_sizes(checkpoint: Path) -> WeightsError:
    return WeightsError(f"{checkpoint.name} has no config.json with the sizes of a Video-ChatGPT model.")
