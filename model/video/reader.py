"""Decoding chosen frames of a file with PyAV: seek, decode forward, check, turn upright.

A frame's number is its place in order of presentation, as in decord, with which the published results were
made. Every decoded frame is checked against the timeline: a file that contradicts itself costs time, or is
refused, but never yields a frame under a wrong number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.frame import VideoFrame

from model.video import timeline
from model.video.container import VideoFile, check_size, declared_duration, declared_rate, open_container, read_timeline
from model.video.spec import Frame, FrameSpec, VideoError, VideoFacts, VideoLimits
from model.video.timeline import Timeline


class _Contradiction(Exception):
    """A decoded frame is not one that the timeline allows at this place."""


@contextmanager
def open_video(path: Path, limits: VideoLimits) -> Iterator["VideoReader"]:
    """Open a file of one of the allowed containers and codecs; no other file and no network is ever read.

    Raises:
        VideoError: on entering, with any code but `empty_interval`.
    """
    with VideoFile(path) as file, read_video(file, limits) as video:
        yield video


@contextmanager
def read_video(file: VideoFile, limits: VideoLimits) -> Iterator["VideoReader"]:
    """As `open_video`, of a file that is open already: from here on nothing needs to be opened any more."""
    order = read_timeline(file, limits)
    decoder = _Decoder(file, limits)
    try:
        yield VideoReader(decoder, order)
    finally:
        decoder.close()


class VideoReader:
    """An open file, its facts, and its frames by number."""

    def __init__(self, decoder: "_Decoder", order: Timeline) -> None:
        self._decoder, self._order = decoder, order
        # Only a decoded frame tells how the pictures are turned; a good one also proves the codec.
        self.facts = _facts(decoder, self._surely(0), order.num_frames)

    def num_frames(self, spec: FrameSpec) -> int:
        """How many frames `spec` asks for.

        Raises:
            VideoError: `empty_interval`.
        """
        return len(self._order.select(spec))

    def frames(self, spec: FrameSpec) -> Iterator[Frame]:
        """The frames that `spec` asks for, in order; one that is asked for twice comes twice.

        Raises:
            VideoError: `empty_interval`; `undecodable` when a wanted frame cannot be had; `too_large`.
        """
        wanted = self._order.select(spec)
        for place, index in enumerate(wanted):
            try:
                picture = self._surely(index) if place == 0 else self._frame_at(index)
            except _Contradiction:  # earlier frames may have gone out under a wrong number
                raise _undecodable() from None
            timestamp = float(self._order.timestamps()[index])
            yield Frame(index=index, timestamp=timestamp, rgb=self._decoder.upright(picture))

    def _surely(self, index: int) -> VideoFrame:
        """The frame, by counting from the file's start if its own times turn out to be wrong."""
        try:
            return self._frame_at(index)
        except _Contradiction:
            if not self._order.whole:
                raise _undecodable() from None
        self._order = timeline.counted(self._order.num_frames, declared_rate(self._decoder.stream))
        self._decoder.start_over()
        return self._frame_at(index)

    def _frame_at(self, index: int) -> VideoFrame:
        for start in self._starting_points(index):
            if start is not None:
                self._decoder.go_to(start, self._order)
            frame = self._decoder.advance(index, self._order)
            if frame is not None:
                if frame.is_corrupt:
                    break
                return frame
        raise _undecodable()

    def _starting_points(self, index: int) -> Iterator[int | None]:
        """Where to decode from, each further back than the one before: None is where the decoder stands."""
        key = self._order.key_before(index)
        position = self._decoder.position
        if position is not None and key <= max(position, 0) and position <= index:
            yield None
        yield key
        # A seek may land behind the packet it looked for, or before pictures that need an earlier one.
        if key > 0:
            yield self._order.key_before(key - 1)
        if self._order.whole:
            yield 0


class _Decoder:
    """A stream of decoded frames that can be moved; it knows the number of the frame it stands at."""

    def __init__(self, file: VideoFile, limits: VideoLimits) -> None:
        self._file, self._limits = file, limits
        self.container, self.stream = open_container(file, limits)
        self._restart(position=-1)

    def close(self) -> None:
        self.container.close()

    def _restart(self, *, position: int | None) -> None:
        self.position = position
        """Number of the frame decoded last; -1 before the first, None where a seek led nobody knows where."""
        self._frame: VideoFrame | None = None
        self._damaged = False
        self._frames = self._decode()

    def start_over(self) -> None:
        """To the very start of the file, as if it had just been opened."""
        self.container.close()
        self.container, self.stream = open_container(self._file, self._limits)
        self._restart(position=-1)

    def go_to(self, key: int, order: Timeline) -> None:
        """To a key frame, or to where the container takes it for."""
        if key == 0:
            return self.start_over()
        try:
            self.container.seek(int(order.pts[key]), stream=self.stream)
        except FFmpegError:
            return self.start_over()
        return self._restart(position=None)

    def advance(self, index: int, order: Timeline) -> VideoFrame | None:
        """Decode up to frame `index`; None if it does not come from here.

        Raises:
            VideoError: `undecodable`: frames are counted, and one before it is damaged.
        """
        if self.position == index and self._frame is not None:
            return self._frame
        for frame in self._frames:
            number = self._number(frame, order)
            # After a seek, what is shown before the first key frame may lack what it was predicted from.
            if self.position is not None or frame.key_frame:
                self.position, self._frame = number, frame
                if number == index:
                    return frame
            if number > index:
                return None
        return None

    def _number(self, frame: VideoFrame, order: Timeline) -> int:
        if not order.stated:
            if self._damaged or self.position is None:
                raise _undecodable()
            return self.position + 1
        number = order.number_of(frame.pts)
        if number is None:
            raise _Contradiction
        if self.position is not None:
            is_next = number == self.position + 1
            if not is_next and not (self._damaged and number > self.position):
                raise _Contradiction
        return number

    def _decode(self) -> Iterator[VideoFrame]:
        try:
            for packet in self.container.demux(self.stream):
                self._damaged = self._damaged or packet.is_corrupt
                try:
                    yield from packet.decode()
                except MemoryError:
                    raise
                except FFmpegError:
                    self._damaged = True  # the decoder finds its feet at the next key frame
        except MemoryError:
            raise
        except FFmpegError:
            self._damaged = True

    def upright(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        """uint8 [height, width, 3], as displayed."""
        check_size(frame.width, frame.height, self._limits)  # pictures may change size on the way
        try:
            rgb = frame.reformat(format="rgb24", threads=1).to_ndarray()
        except MemoryError:
            raise
        except (FFmpegError, ValueError):
            raise _undecodable() from None
        return np.ascontiguousarray(np.rot90(rgb, _rotation(frame) // 90)).astype(np.uint8, copy=False)


def _facts(decoder: _Decoder, first: VideoFrame, num_frames: int) -> VideoFacts:
    rotation = _rotation(first)
    rate = declared_rate(decoder.stream) or Fraction(1)
    return VideoFacts(
        duration=declared_duration(decoder.container, decoder.stream) or num_frames / float(rate),
        width=first.height if rotation % 180 else first.width,
        height=first.width if rotation % 180 else first.height,
        fps=float(rate),
        num_frames=num_frames,
        codec=decoder.stream.codec_context.codec.canonical_name,
        rotation=rotation,
    )


def _rotation(frame: VideoFrame) -> int:
    return round(frame.rotation / 90) % 4 * 90


def _undecodable() -> VideoError:
    return VideoError("undecodable", "A part of the video that is needed is missing or damaged.")
