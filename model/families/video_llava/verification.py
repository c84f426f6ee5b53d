"""The verification stages of the original Video-LLaVA, named like the reference tensors.

A folder has either `inputs.safetensors`, with pixels, or `clip.mp4`, whose frames are decoded first.
"""

from collections.abc import Iterator
from pathlib import Path

from model.family import Family
from model.verification.frames import frame_findings
from model.verification.inputs import INPUTS_FILE, read_clip
from model.verification.splicing import dialogue_findings
from model.verification.stage import Finding, Stage
from model.verification.video_llava import encoder_stages, frame_marks, verify_pixels

IMAGE_PREFIX = "model.image_tower.image_tower."


def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder.

    With pixels, see `model.verification.video_llava.verify_pixels`. With a clip: its frame numbers and pixels
    (`video_stats`, and `pixel_values_sub7` [3, T, S / 7, S / 7]), `video_features`, `video_tokens`, and the stages of
    each turn of `dialogue.json`.

    Raises:
        WeightsError: the folder lacks its inputs, or they have no slot for a video.
    """
    if (folder / INPUTS_FILE).is_file():
        yield from verify_pixels(family, folder, image_prefix=IMAGE_PREFIX)
        return
    clip, pixel_values = read_clip(family, folder)
    yield from frame_findings(clip, pixel_values, folder)
    yield Stage(name="pixel_values_sub7", tensor=pixel_values[0, :, :, ::7, ::7].transpose(0, 1))
    video_tokens = yield from encoder_stages(family, pixel_values)
    yield from dialogue_findings(family, folder, clip, video_tokens, frame_marks(family))
