"""The stretches of a file's sound track that a model hears. Imports PyAV.

Of a long track only the start, the end and the stretches are decoded, so it costs no more than one of a few minutes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from model.video.container import VideoFile
from model.video.inputs import InputSpec, SoundSpec
from model.video.resampling import num_resampled, resample, source_range
from model.video.sound_samples import Samples
from model.video.sound_track import SoundTrack
from model.video.spec import FrameSpec, SoundError, SoundErrorCode, SoundFacts, VideoLimits

MIN_SECONDS = Fraction(1, 40)
"""The shortest sound from which a spectrogram can be computed."""


Stretches = npt.NDArray[np.float32]
"""[count, samples], from -1 to 1."""


@contextmanager
def open_sound(file: VideoFile, limits: VideoLimits) -> Iterator[SoundTrack]:
    """Open the sound track of a file that is already open; opens no other file.

    Raises:
        SoundError: on entering, `no_audio_stream`, `unsupported_audio` or `undecodable_audio`.
    """
    track = SoundTrack(file, limits)
    try:
        yield track
    finally:
        track.close()


def read_sound(
    file: VideoFile, inputs: InputSpec, limits: VideoLimits, *, video_start: Fraction
) -> tuple[Stretches | None, SoundErrorCode | None]:
    """Read what a model hears of a file; None with the reason if there is no sound that can be used.

    Both are None for a model that does not hear.
    """
    if inputs.sound is None:
        return None, None
    try:
        with open_sound(file, limits) as track:
            return read_stretches(track, inputs.sound, inputs.frames, video_start=video_start), None
    except SoundError as error:
        return None, error.code
    except MemoryError:
        return None, "undecodable_audio"


def sound_facts(file: VideoFile, limits: VideoLimits) -> tuple[SoundFacts | None, SoundErrorCode | None]:
    """Return what the header of a file states about its sound; None with the reason if it cannot be used."""
    try:
        with open_sound(file, limits) as track:
            return track.facts, None
    except SoundError as error:
        return None, error.code
    except MemoryError:
        return None, "undecodable_audio"


def read_stretches(track: SoundTrack, spec: SoundSpec, frames: FrameSpec, *, video_start: Fraction) -> Stretches:
    """Read, resample and centre the stretches of a track that `spec` selects, within the interval of `frames`.

    `video_start` is the time of the first frame, from which the interval is measured.

    Returns:
        The first channel of each stretch, [count, samples]. All have one length, `spec.max_samples` or, if the track
        or the interval is shorter, that of the track or the interval.

    Raises:
        SoundError: `undecodable_audio`, `audio_too_short`.
    """
    num_samples = num_resampled(track.find_samples(), rate=track.facts.rate, target=spec.rate)
    first, last = _interval(frames, num_samples, delay=track.start - video_start, rate=spec.rate)
    if last - first < MIN_SECONDS * spec.rate:
        raise SoundError("audio_too_short")
    starts = [first + start for start in spec.starts(last - first)]
    length = min(spec.max_samples, last - first)
    return centred(_resampled(track, starts, length, spec.rate), starts)


def centred(stretches: list[Samples], starts: list[int]) -> Stretches:
    """Subtract from each stretch [channels, samples] its mean over all channels; return the first channels.

    Stretches that overlap share their samples, as in the published code: from a stretch, the means of the earlier ones
    are already subtracted where they overlap.
    """
    length = stretches[0].shape[1]
    means: list[tuple[int, np.float32]] = []
    result = []
    for start, samples in zip(starts, stretches, strict=True):
        current = samples.copy()
        for earlier, mean in means:
            overlap = max(0, earlier + length - start)
            current[:, :overlap] -= mean
        means.append((start, current.mean()))
        result.append(current[0] - means[-1][1])
    return np.stack(result)


def _interval(frames: FrameSpec, num_samples: int, *, delay: Fraction, rate: int) -> tuple[int, int]:
    """Return the first sample in the interval of `frames`, and the one after the last.

    `delay` is the time of the first sample after the first frame, in seconds.
    """

    def place(seconds: float | None, default: int) -> int:
        if seconds is None:
            return default
        return min(max(math.floor((Fraction(seconds) - delay) * rate), 0), num_samples)

    return place(frames.start, 0), place(frames.end, num_samples)


def _resampled(track: SoundTrack, starts: list[int], length: int, rate: int) -> list[Samples]:
    """Return the samples at `rate` of each stretch."""
    ranges = [source_range(start, start + length, rate=track.facts.rate, target=rate) for start in starts]
    pieces = track.read([(max(low, 0), high) for low, high in ranges])
    return [
        resample(np.pad(piece, ((0, 0), (max(-low, 0), 0))), start, start + length, rate=track.facts.rate, target=rate)
        for start, (low, _), piece in zip(starts, ranges, pieces, strict=True)
    ]
