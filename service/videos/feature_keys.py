"""What a model takes of a video when a session asks for some frames, and the key of the features it needs. No I/O."""

from dataclasses import replace

from model.features import fingerprint
from model.video.inputs import InputSpec
from model.video.pixels import PREPROCESSING_VERSION
from model.video.spec import InvalidFrameSpec
from service.errors import InvalidRequest
from service.store import keys
from service.store.records import FrameRequest, VideoRecord
from service.workers.protocol import ModelInfo

DEFAULT_FRAMES = FrameRequest()
"""The model's own frame spec."""


def requested_inputs(info: ModelInfo, frames: FrameRequest) -> InputSpec:
    """Return the inputs of a model with the requested frames.

    Raises:
        InvalidRequest: the model cannot take so many frames, or sees no videos.
    """
    if info.inputs is None:
        raise InvalidRequest("invalid_value", f"The model {info.name!r} sees no videos.", param="video_ids")
    own = info.inputs.frames
    try:
        spec = replace(own, count=frames.count or own.count, start=frames.start, end=frames.end)
        return replace(info.inputs, frames=spec, sound=info.inputs.sound if frames.audio else None)
    except InvalidFrameSpec as error:
        raise InvalidRequest("invalid_value", str(error), param=f"frames.{error.param}") from None


def features_key(tenant: str, video: VideoRecord, inputs: InputSpec, info: ModelInfo) -> str:
    """Return the key of the features that a model with these inputs needs of a video.

    Models with the same family, encoder, inputs and dtype have the same key.
    """
    of_model = fingerprint(
        family=info.family,
        encoder_digest=info.encoder_digest,
        inputs=inputs,
        preprocessing_version=PREPROCESSING_VERSION,
        dtype=info.dtype,
    )
    return keys.features(tenant, of_model, video.sha256)
