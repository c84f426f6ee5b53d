"""The codecs of sound that may be decoded, their bounds, and the samples of a decoded frame as floats. Imports PyAV."""

from typing import Any

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame

from model.video.spec import SoundError, SoundFacts

DECODERS = (
    *("aac", "ac3", "alac", "eac3", "flac", "mp2", "mp2float", "mp3", "mp3float", "opus", "vorbis"),
    *("pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s16be", "pcm_s16le", "pcm_s24be", "pcm_s24le", "pcm_s32be", "pcm_s32le"),
    *("pcm_f32be", "pcm_f32le"),
)
"""FFmpeg's names of the allowed decoders."""
MIN_RATE, MAX_RATE = 8_000, 192_000
MAX_CHANNELS = 8
_LOUDEST = 1e4
"""The largest sample; more, or no number at all, is damage that float formats allow."""

Samples = npt.NDArray[np.float32]
"""[channels, samples], from -1 to 1."""


def checked_facts(codec: str, rate: int, channels: int) -> SoundFacts:
    """Return the facts of a sound track.

    Raises:
        SoundError: `unsupported_audio`, a number is out of bounds.
    """
    if not (MIN_RATE <= rate <= MAX_RATE and 1 <= channels <= MAX_CHANNELS):
        raise SoundError("unsupported_audio")
    return SoundFacts(codec=codec, rate=rate, channels=channels)


def samples_of(frame: AudioFrame, facts: SoundFacts) -> Samples:
    """Return a frame's samples from -1 to 1, [channels, samples].

    Raises:
        SoundError: `undecodable_audio`, the rate or the channels change within the track, or a sample is no number.
    """
    if frame.sample_rate != facts.rate or frame.layout.nb_channels != facts.channels:
        raise SoundError("undecodable_audio")
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, facts.channels).T
    floats = _scaled(values)
    if floats.size and not np.abs(floats).max() <= _LOUDEST:
        raise SoundError("undecodable_audio")
    return floats


def _scaled(values: npt.NDArray[Any]) -> Samples:
    """Return samples in the range of -1 to 1, whatever their type."""
    match values.dtype.kind:
        case "f":
            return values.astype(np.float32, copy=False)
        case "u":
            return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
        case _:
            loudest = np.float32(2 ** (8 * values.itemsize - 1))
            return values.astype(np.float32) / loudest
