"""The verification stages of Video-LLaVA `-hf`, named like the reference tensors.

A folder has either `inputs.safetensors`, with pixels, or `clip.mp4`, whose frames are decoded first.
"""

from collections.abc import Iterator
from pathlib import Path

from model.checkpoints.json_object import read_object
from model.family import Family
from model.verification.frames import frame_findings
from model.verification.inputs import INPUTS_FILE, checked, read_clip
from model.verification.splicing import Mark, dialogue_findings
from model.verification.stage import Finding, Stage
from model.verification.video_llava import encoder_stages, verify_pixels
from model.weights import WeightsError

IMAGE_PREFIX = "image_tower.vision_model."
VIDEO_MARK = "<video>"


def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder.

    With pixels, see `model.verification.video_llava.verify_pixels`; the prompt is the original's, so its system text is
    given. With a clip: its frame numbers and pixels (`video_stats`, and `pixel_values_sub7` [T, 3, S / 7, S / 7]),
    `video_features`, `video_tokens`, and the stages of each turn of `dialogue.json`.

    Raises:
        WeightsError: the folder lacks its inputs, or they have no slot for a video.
    """
    values = checked(read_object(folder / "config.json"), folder / "config.json")
    if (folder / INPUTS_FILE).is_file():
        system = values.get("prompt", "").partition("USER: ")[0].strip()
        yield from verify_pixels(family, folder, image_prefix=IMAGE_PREFIX, system=system)
        return
    clip, pixel_values = read_clip(family, folder)
    yield from frame_findings(clip, pixel_values, folder)
    yield Stage(name="pixel_values_sub7", tensor=pixel_values[0, :, :, ::7, ::7])
    video_tokens = yield from encoder_stages(family, pixel_values)
    mark = Mark(text=VIDEO_MARK, ids=(_video_token(folder),))
    yield from dialogue_findings(family, folder, clip, video_tokens, mark, ids_name="input_ids_with_one_video_token")


def _video_token(folder: Path) -> int:
    """Return the id of `<video>` that the reference's ids have in place of a video."""
    for name in ("dialogue.json", "config.json"):
        values = read_object(folder / name) if (folder / name).is_file() else {}
        if isinstance(token := values.get("video_token_index"), int):
            return token
    raise WeightsError(f"{folder} does not name video_token_index, with which its prompts mark a video.")
