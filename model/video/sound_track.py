"""Reads pieces of a file's sound track with PyAV: seek, decode forward, place the samples by their timestamps.

Samples are numbered as a decoder gives them from the start of the file on, without regard to when the track starts
beside the pictures; so are those of torchaudio, with which the published results were made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from model.video.container import CONTAINERS, VideoFile, open_media
from model.video.sound_samples import DECODERS, Samples, checked_facts, samples_of
from model.video.spec import SoundError, VideoError, VideoLimits

_WARM_UP = 1.0
"""Seconds that are decoded before a range: decoders depend on earlier packets, MP3's on those of a quarter second."""
_UNREADABLE = (FFmpegError, ValueError, IndexError)
"""PyAV raises `IndexError` for packets of a stream that the start of the file does not announce."""
_EARLIER = (0.0, 5.0, 30.0)
"""Seconds before the wanted place to which the attempts seek; some containers land too late."""
_FORWARD = 30.0
"""Seconds between two ranges, or before the first, that are decoded rather than skipped.

Decoders of AAC and AC-3 draw random noise, so that only samples decoded from the start of the track on equal those of a
decode of the whole track."""
_SLACK = 90.0
"""Seconds that are decoded at most besides ranges and what is between them, wherever a seek leads."""

_MAX_PACKETS = 2_000_000
"""Most packets that are read of a track; four hours of AAC at 96 kHz have 1.4 million."""
_MAX_FRAMES = 400_000
"""Most frames that are decoded of a track, of any length; each takes about 15 microseconds besides its samples."""


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Samples that were decoded together; the first has number `position`."""

    position: int
    samples: Samples

    @property
    def end(self) -> int:
        return self.position + int(self.samples.shape[1])


class _TooManyFrames(SoundError):
    """The track has more frames than are decoded."""


def _copy(run: _Run, piece: Samples, bounds: tuple[int, int]) -> bool:
    """Copy those samples of a run that are in a piece with these bounds; returns whether there are any."""
    low, high = max(run.position, bounds[0]), min(run.end, bounds[1])
    if low < high:
        piece[:, low - bounds[0] : high - bounds[0]] = run.samples[:, low - run.position : high - run.position]
    return low < high


class SoundTrack:
    """The best sound track of a file: facts, and samples by number.

    Every method raises `SoundError` with code `undecodable_audio` if what it needs is missing or damaged.

    Raises:
        SoundError: `no_audio_stream`, `unsupported_audio`, `undecodable_audio`.
    """

    def __init__(self, file: VideoFile, limits: VideoLimits) -> None:
        self._file, self._limits = file, limits
        self._num_frames = 0
        self._container, self._stream = self._open()
        codec = self._stream.codec_context
        try:
            self.facts = checked_facts(codec.codec.canonical_name, codec.sample_rate, codec.layout.nb_channels)
        except SoundError:
            self.close()
            raise

    def close(self) -> None:
        """Close the container; the file stays open."""
        self._container.close()

    def find_samples(self) -> int:
        """Decode the start and the end of the track, and return the number of its samples."""
        self._find_start()
        last = self._last_tick()
        end = 0
        for run in self._decoded(round((last - self._first_tick) * self._tick), limit=None):
            end = max(end, run.end)
        if not 0 < end <= self._limits.max_duration * self.facts.rate:
            raise SoundError("undecodable_audio")
        return end

    @property
    def start(self) -> Fraction:
        """The time of the first sample, in seconds of the container; known after `find_samples`."""
        return self._first_tick * self._time_base

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[Samples]:
        """Return the samples of each range (first, one after the last), in the order of their starts.

        Where the track has no samples, they are zero. To be called after `find_samples`.
        """
        pieces = [np.zeros((self.facts.channels, end - start), np.float32) for start, end in ranges]
        for group in self._groups(ranges):
            found = False
            for run in self._decoded(ranges[group[0]][0], limit=max(ranges[number][1] for number in group)):
                for number in group:
                    found |= _copy(run, pieces[number], ranges[number])
            if not found:
                raise SoundError("undecodable_audio")
        return pieces

    def _groups(self, ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Group the numbers of ranges that are decoded without a seek in between."""
        groups: list[list[int]] = []
        for number, (start, _) in enumerate(ranges):
            before = ranges[number - 1][1] if groups else 0
            if start - before <= _FORWARD * self.facts.rate and groups:
                groups[-1].append(number)
            else:
                groups.append([number])
        return groups

    # -- opening

    def _open(self) -> tuple[InputContainer, AudioStream]:
        try:
            container = open_media(self._file, self._limits, decoders=DECODERS)
        except VideoError:
            raise SoundError("undecodable_audio") from None
        try:
            stream = container.streams.best("audio")
            if not isinstance(stream, AudioStream):
                raise SoundError("no_audio_stream")
            codec = stream.codec_context
            if codec is None or codec.codec.name not in DECODERS:
                raise SoundError("unsupported_audio")
            codec.thread_count = 1
        except BaseException:
            container.close()
            raise
        return container, stream

    def _find_start(self) -> None:
        """Find the first timestamp, and the lengths of frames, by which rounded timestamps are corrected."""
        frames = self._frames()
        first, second = next(frames, None), next(frames, None)
        if first is None or first.pts is None or self._stream.time_base is None:
            raise SoundError("undecodable_audio")
        # Some decoders give another rate than the header states (AAC with spectral band replication).
        self.facts = checked_facts(self.facts.codec, first.sample_rate, first.layout.nb_channels)
        self._time_base = self._stream.time_base
        self._tick = self._time_base * self.facts.rate
        """Samples of one tick of the timestamps."""
        self._first_tick, self._first_length = first.pts, first.samples
        self._length = first.samples if second is None else second.samples

    def _last_tick(self) -> int:
        """Return the timestamp of the last packet, without decoding: from the index of an MP4, or from all packets."""
        entries = self._stream.index_entries
        if self._container.format.name == CONTAINERS[0] and entries and len(entries) == self._stream.frames:
            return max(int(entries[-1].timestamp), self._first_tick)
        self._restart()
        try:
            last = self._first_tick
            for number, packet in enumerate(self._container.demux(self._stream)):
                if number >= _MAX_PACKETS:
                    raise SoundError("undecodable_audio")
                if packet.size and packet.pts is not None:
                    last = max(last, packet.pts)
            return last
        except MemoryError:
            raise
        except _UNREADABLE:
            raise SoundError("undecodable_audio") from None

    # -- decoding

    def _decoded(self, wanted: int, *, limit: int | None) -> Iterator[_Run]:
        """Yield what is decoded from somewhat before sample `wanted` on; up to `limit`, or to the end of the track.

        Frames in which something is damaged, or before them, may be missing before `wanted`.
        """
        for earlier in _EARLIER:
            target = wanted - round((_WARM_UP + earlier) * self.facts.rate)
            from_start = target <= 0 or wanted <= _FORWARD * self.facts.rate
            runs = self._positioned(wanted, seek=None if from_start else target)
            first = next(runs, None)
            if first is not None and (from_start or first.position <= wanted - _WARM_UP / 2 * self.facts.rate):
                break
        else:
            raise SoundError("undecodable_audio")
        yield first
        num_allowed = (limit or wanted) - wanted + round(_SLACK * self.facts.rate)
        for run in runs:
            if limit is not None and run.position >= limit:
                return
            num_allowed -= run.samples.shape[1]
            if num_allowed < 0:
                raise SoundError("undecodable_audio")
            yield run

    def _positioned(self, wanted: int, *, seek: int | None) -> Iterator[_Run]:
        """Decode from the start, or from where a seek to sample `seek` leads, and number the samples."""
        expected = None if seek else 0
        for frame in self._frames(wanted, seek=seek):
            position = self._position(frame, expected)
            run = _Run(position, samples_of(frame, self.facts))
            expected = run.end
            yield run

    def _position(self, frame: AudioFrame, expected: int | None) -> int:
        """Return the number of a frame's first sample.

        Timestamps may be rounded: to milliseconds in Matroska. A frame then follows the one before it, or, after a
        seek, the first frame of the track and a whole number of frames; they have one length, except in Vorbis.
        """
        if frame.pts is None:
            if expected is None:
                raise SoundError("undecodable_audio")
            return expected
        place = (frame.pts - self._first_tick) * self._tick
        if expected is not None and abs(place - expected) <= self._tick + 1:
            return expected
        if self._tick <= 1 or place < self._first_length / 2:
            return round(place)
        return self._first_length + round((place - self._first_length) / self._length) * self._length

    def _frames(self, wanted: int | None = None, *, seek: int | None = None) -> Iterator[AudioFrame]:
        """Decode from the start, or after a seek; damage matters from sample `wanted` on."""
        self._restart()
        try:
            if seek:
                self._container.seek(self._first_tick + int(seek / self._tick), stream=self._stream)
            for packet in self._container.demux(self._stream):
                try:
                    if packet.is_corrupt:
                        raise SoundError("undecodable_audio")
                    for frame in packet.decode():
                        self._num_frames += 1
                        if self._num_frames > _MAX_FRAMES:
                            raise _TooManyFrames("undecodable_audio")
                        yield frame
                except _TooManyFrames:
                    raise
                except (FFmpegError, SoundError) as error:
                    if not self._is_before(packet.pts, wanted) or isinstance(error, MemoryError):
                        raise
        except MemoryError:
            raise
        except _UNREADABLE as error:
            raise error if isinstance(error, SoundError) else SoundError("undecodable_audio") from None

    def _is_before(self, pts: int | None, wanted: int | None) -> bool:
        if pts is None or wanted is None:
            return False
        return (pts - self._first_tick) * self._tick < wanted - _WARM_UP / 2 * self.facts.rate

    def _restart(self) -> None:
        self._container.close()
        self._container, self._stream = self._open()
