"""Finds ImageBind-LLM's published files, and merges them in the order in which the original loads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints.folder import TOKENIZER, read_config
from model.checkpoints.meta_llama import META_FOLDER, META_KEYS, WEIGHTS, meta_sizes, read_meta_llama
from model.checkpoints.published import FolderKind, Keys, PublishedModel, PublishedPart, Source
from model.checkpoints.values import check_rounded
from model.families.imagebind_llm.network import ImageBindLLMConfig
from model.networks.imagebind_audio import ImageBindAudioConfig
from model.networks.imagebind_vision import ImageBindVisionConfig
from model.networks.llama import DecoderConfig
from model.text.sentencepiece import read_sentencepiece
from model.weights import WeightsError

MODEL = "ImageBind-LLM"
BASE, MERGED_BASE, DELTA = "7B", "7B_chinese", "7B_chinese_delta"
"""The folders of LLaMA, of LLaMA with the delta of Open-Chinese-LLaMA, and of the delta."""
_LORA = r"lora_w[qkvo123]_l[12]\.weight"
_ADAPTER = "|".join(
    (
        r"image_bind_(proj\.(weight|bias)|norm_[123]\.weight|f[123]_[123]\.weight)",
        r"prefix_query\.weight",
        rf"llama\.layers\.\d+\.attention\.(gate|w[qo]\.bias|{_LORA})",
        rf"llama\.layers\.\d+\.feed_forward\.(w[123]\.bias|{_LORA})",
        r"llama\.(layers\.\d+\.(attention|ffn)_norm|norm)\.weight",
    )
)
_VISION, _AUDIO = "image_bind.modality_preprocessors.vision.", "image_bind.modality_preprocessors.audio."

PUBLISHED_7B = ImageBindLLMConfig(
    vision=ImageBindVisionConfig(width=1280, depth=32, num_heads=16, out_width=1024),
    audio=ImageBindAudioConfig(width=768, depth=12, num_heads=12, out_width=1024),
    bridge_width=16384,
    num_query_layers=32,
    lora_rank=16,
    decoder=DecoderConfig(vocab_size=32000, width=4096, depth=32, num_heads=32, mlp_width=11008),
)


def _is_delta(folder: Path) -> bool:
    return folder.name.endswith("_delta") and (folder / WEIGHTS).is_file()


PUBLISHED = PublishedModel(
    MODEL,
    PublishedPart(
        name="imagebind",
        files=("ckpts/imagebind_huge.pth", "imagebind_huge.pth", "ckpts/imagebind_w3D.pth", "imagebind_w3D.pth"),
        keys=Keys(
            wanted=r"modality_(preprocessors|trunks|heads|postprocessors)\.(vision|audio)\..+",
            unused=r"modality_(preprocessors|trunks|heads|postprocessors)\.(text|depth|thermal|imu|point)\..+"
            r"|point_trunk\..+",
            prefix="image_bind.",
        ),
    ),
    PublishedPart(name="llama", folder=META_FOLDER, keys=META_KEYS),
    PublishedPart(  # of Open-Chinese-LLaMA, to be added to LLaMA
        name="delta",
        folder=FolderKind(description=f"{DELTA} folder ({WEIGHTS})", matches=_is_delta),
        keys=META_KEYS,
        is_optional=True,
    ),
    PublishedPart(name="adapter", files=("7B.pth",), keys=Keys(wanted=_ADAPTER)),
    PublishedPart(name="tokenizer", files=(f"llama/{TOKENIZER}", TOKENIZER), is_optional=True),
    PublishedPart(name="config", is_optional=True),  # the sizes, if they are not the published ones
)


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str]
) -> Source[ImageBindLLMConfig]:
    """Find and merge the published model.

    Raises:
        WeightsError: see `find_published` and `merge`.
    """
    paths = find_published(folder, named)
    config, tensors = merge(paths, ignored=ignored)
    return Source(config=config, tensors=tensors, tokenizer=paths.get("tokenizer"), files=paths.values())


def find_published(folder: Path | None, named: Mapping[str, Path]) -> dict[str, Path]:
    """Find the parts of `PUBLISHED`.

    The LLaMA is looked for in the subfolder `llama`, and is `7B_chinese` there if it exists, because the published
    adapter was trained with it. If it does not, but the delta does, it is the sum of `7B` and the delta. A LLaMA that
    the user named is taken as it is, unless the user named a delta too.

    Raises:
        WeightsError: a part is neither named nor found, or `named` has an unknown part.
    """
    paths = PUBLISHED.find(folder, {**_find_llama(folder, named), **named})
    is_sum = "delta" in named or ("llama" not in named and paths["llama"].name == BASE)
    return paths if is_sum else {name: path for name, path in paths.items() if name != "delta"}


def _find_llama(folder: Path | None, named: Mapping[str, Path]) -> dict[str, Path]:
    """Return the LLaMA in `folder` and a delta beside it, unless the user named a LLaMA or it is elsewhere."""
    inner = folder / "llama" if folder and (folder / "llama").is_dir() else folder
    if inner is None or "llama" in named:
        return {}
    names = (BASE,) if "delta" in named else (MERGED_BASE, BASE)
    llama = next((inner / name for name in names if META_FOLDER.matches(inner / name)), None)
    delta = inner / DELTA
    return ({} if llama is None else {"llama": llama}) | ({"delta": delta} if _is_delta(delta) else {})


def read_sizes(path: Path) -> ImageBindLLMConfig:
    """Read the sizes in a `config.json`: in our layout, or by part (`imagebind`, `audio`, `bridge` and `llama`).

    Raises:
        WeightsError: the file is absent, or a size is missing, unknown or impossible.
    """
    return read_config(path, ImageBindLLMConfig, model=MODEL, part="llama", by_part=_sizes_by_part)


def merge(paths: Mapping[str, Path], *, ignored: Sequence[str] = ()) -> tuple[ImageBindLLMConfig, dict[str, Tensor]]:
    """Merge the files into the sizes and state dict of the original model: its names, each file's own dtype, mapped.

    The adapter's norms replace those of LLaMA.

    Args:
        paths: from `find_published`.
        ignored: keys, as they are in the files, that the user knows to be harmless.

    Raises:
        WeightsError: a file is absent, damaged, of another model, or holds an unknown key.
        TokenizerError: the tokenizer cannot be used.
    """
    base = read_meta_llama(paths["llama"])
    decoder = meta_sizes(paths["llama"], base)
    llama = PUBLISHED.select("llama", paths, base, ignored=ignored)
    if "delta" in paths:
        delta = PUBLISHED.select("delta", paths, read_meta_llama(paths["delta"]), ignored=ignored)
        llama = _sum(llama, delta, paths["delta"])
    adapter = PUBLISHED.read("adapter", paths, ignored=ignored)
    imagebind = PUBLISHED.read("imagebind", paths, ignored=ignored)
    config = read_sizes(paths["config"]) if "config" in paths else _published_sizes(imagebind, paths["imagebind"])
    _check_llama(paths, config.decoder, decoder)
    _check_adapter(paths, config, adapter)
    _check_tokenizer(paths, config.decoder)
    if config.audio is None:
        imagebind = {key: tensor for key, tensor in imagebind.items() if ".audio." not in key}
    return config, imagebind | llama | adapter


def _sum(llama: Mapping[str, Tensor], delta: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return LLaMA plus the delta in float16, as its authors merge them."""
    for key, tensor in llama.items():
        if key not in delta:
            raise WeightsError(f"{path.name} lacks {key.removeprefix('llama.')}. Download {WEIGHTS} again.")
        if delta[key].shape != tensor.shape:
            raise WeightsError(f"{path.name} is the delta of another LLaMA: {key} is {list(delta[key].shape)}.")
    total = {key: (tensor.float() + delta[key].float()).half() for key, tensor in llama.items()}
    for key, tensor in total.items():
        check_rounded(key, tensor, file=f"LLaMA with {path.name}")
    return total


def _published_sizes(imagebind: Mapping[str, Tensor], path: Path) -> ImageBindLLMConfig:
    published = PUBLISHED_7B
    assert published.audio is not None, "the published model hears"
    for prefix, width in ((_VISION, published.vision.width), (_AUDIO, published.audio.width)):
        token = imagebind.get(f"{prefix}cls_token")
        if token is None or token.shape[-1] != width:
            found = "missing" if token is None else list(token.shape)
            key = f"{prefix.removeprefix('image_bind.')}cls_token"
            raise WeightsError(
                f"{path.name} is not the published ImageBind: {key} is {found}. "
                "For other sizes name their config.json with --part config=FILE; the numbers of heads do not follow "
                "from the tensors."
            )
    return published


def _check_llama(paths: Mapping[str, Path], wanted: DecoderConfig, found: DecoderConfig) -> None:
    for name in ("vocab_size", "width", "depth", "num_heads", "mlp_width", "rms_eps"):
        if getattr(wanted, name) != getattr(found, name):
            raise WeightsError(
                f"{paths['llama']} holds another LLaMA than this model was trained with: {name} is "
                f"{getattr(found, name)}, not {getattr(wanted, name)}. The published adapter needs LLaMA 7B of 2023 "
                f"with the delta of Open-Chinese-LLaMA ({MERGED_BASE})."
            )


def _check_adapter(paths: Mapping[str, Path], config: ImageBindLLMConfig, adapter: Mapping[str, Tensor]) -> None:
    """Refuse an adapter without what its last training added, which `7B-pretrained.pth` lacks."""
    name = paths["adapter"].name
    if not any("lora_" in key for key in adapter):
        raise WeightsError(f"{name} has no low-rank updates: it is the pre-trained adapter, not the final 7B.pth.")
    prefix = adapter.get("prefix_query.weight")
    wanted = [config.num_query_layers, config.decoder.width]
    if prefix is None or list(prefix.shape) != wanted:
        found = "missing" if prefix is None else list(prefix.shape)
        raise WeightsError(f"{name} is the adapter of another LLaMA: prefix_query.weight is {found}, not {wanted}.")


def _check_tokenizer(paths: Mapping[str, Path], decoder: DecoderConfig) -> None:
    path = paths.get("tokenizer")
    num_pieces = decoder.vocab_size if path is None else read_sentencepiece(path).vocab_size
    if num_pieces != decoder.vocab_size:
        raise WeightsError(
            f"{path} has {num_pieces} pieces for {decoder.vocab_size} rows of embeddings; it is another model's."
        )


def _sizes_by_part(values: Mapping[str, Any]) -> ImageBindLLMConfig:
    vision, audio, llama, bridge = values["imagebind"], values.get("audio"), values["llama"], values["bridge"]
    width, multiple = llama["dim"], llama["multiple_of"]
    assert audio is None or audio["out_embed_dim"] == vision["out_embed_dim"], "all modalities share one space"
    return ImageBindLLMConfig(
        vision=ImageBindVisionConfig(
            width=vision["vision_embed_dim"],
            depth=vision["vision_num_blocks"],
            num_heads=vision["vision_num_heads"],
            out_width=vision["out_embed_dim"],
            image_size=vision["img_size"],
            patch_size=vision["patch_size"],
            num_frames=vision["video_frames"],
        ),
        audio=None
        if audio is None
        else ImageBindAudioConfig(
            width=audio["audio_embed_dim"],
            depth=audio["audio_num_blocks"],
            num_heads=audio["audio_num_heads"],
            out_width=audio["out_embed_dim"],
            num_bins=audio["audio_num_mel_bins"],
            num_frames=audio["audio_target_len"],
            kernel=audio["kernel"],
            stride=audio["stride"],
        ),
        bridge_width=bridge["hidden_mult"] * width,
        num_query_layers=values["query_layer"],
        lora_rank=llama["lora_rank"],
        decoder=DecoderConfig(
            vocab_size=llama["vocab_size"],
            width=width,
            depth=llama["n_layers"],
            num_heads=llama["n_heads"],
            mlp_width=-(-(8 * width // 3) // multiple) * multiple,
            max_positions=llama["max_seq_len"],
            rms_eps=llama["norm_eps"],
        ),
    )
