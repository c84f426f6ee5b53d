"""Decodes selected frames of a file with PyAV: seek, decode forward, check, rotate.

A frame's number is its index in presentation order, as in decord, with which the published results were made. Every
decoded frame is checked against the timeline. An inconsistent file takes longer or is refused, but never yields a frame
with a wrong number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import VideoFrame

from model.video import timeline
from model.video.container import (
    DEMUX_ERRORS,
    VideoFile,
    check_size,
    declared_duration,
    declared_rate,
    open_container,
    read_timeline,
)
from model.video.spec import Frame, FrameSpec, VideoError, VideoFacts, VideoLimits
from model.video.timeline import Timeline


class _Contradiction(Exception):
    """A decoded frame contradicts the timeline."""


@contextmanager
def open_video(path: Path, limits: VideoLimits) -> Iterator["VideoReader"]:
    """Open a file of one of the allowed containers and codecs; no other file and no network is accessed.

    Raises:
        VideoError: on entering, with any code except `empty_interval`.
    """
    with VideoFile(path) as file, read_video(file, limits) as video:
        yield video


@contextmanager
def read_video(file: VideoFile, limits: VideoLimits) -> Iterator["VideoReader"]:
    """Like `open_video`, for a file that is already open; opens no other file."""
    order = read_timeline(file, limits)
    decoder = _Decoder(file, limits)
    try:
        yield VideoReader(decoder, order)
    finally:
        decoder.close()


class VideoReader:
    """An open video file: its facts, and its frames by number."""

    def __init__(self, decoder: "_Decoder", order: Timeline) -> None:
        self._decoder, self._order = decoder, order
        # The rotation is known from a decoded frame only; decoding one also proves that the codec works.
        self.facts = _facts(decoder, self._frame_or_count(0), order.num_frames)

    @property
    def start(self) -> Fraction:
        """The time of the first frame, in seconds of the container; 0 if the file states none."""
        return int(self._order.pts[0]) * self._order.time_base if self._order.stated else Fraction(0)

    def num_frames(self, spec: FrameSpec) -> int:
        """Return how many frames `spec` selects.

        Raises:
            VideoError: `empty_interval`.
        """
        return len(self._order.select(spec))

    def frames(self, spec: FrameSpec, *, scaled_to: int | None = None) -> Iterator[Frame]:
        """Yield the frames that `spec` selects, in order; a frame that is selected twice is yielded twice.

        `scaled_to` is the size of the square that FFmpeg's scaler makes of each besides.

        Raises:
            VideoError: `empty_interval`; `undecodable` if a selected frame cannot be decoded; `too_large`.
        """
        wanted = self._order.select(spec)
        for order, index in enumerate(wanted):
            try:
                picture = self._frame_or_count(index) if order == 0 else self._frame_at(index)
            except _Contradiction:  # frames already yielded may have had wrong numbers
                raise _undecodable() from None
            timestamp = float(self._order.timestamps()[index])
            yield Frame(
                index=index,
                timestamp=timestamp,
                rgb=self._decoder.upright(picture),
                scaled=None if scaled_to is None else _scaled(picture, scaled_to),
            )

    def _frame_or_count(self, index: int) -> VideoFrame:
        """Return a frame; if the file's timestamps are wrong, count frames from its start instead."""
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
        """Yield key frames to decode from, each earlier than the one before; None is the decoder's current position."""
        key = self._order.key_before(index)
        position = self._decoder.position
        if position is not None and key <= max(position, 0) and position <= index:
            yield None
        yield key
        # A seek may land after the wanted packet, or at pictures that depend on an earlier key frame.
        if key > 0:
            yield self._order.key_before(key - 1)
        if self._order.whole:
            yield 0


class _Decoder:
    """A seekable stream of decoded frames that keeps track of frame numbers."""

    def __init__(self, file: VideoFile, limits: VideoLimits) -> None:
        self._file, self._limits = file, limits
        self.container, self.stream = open_container(file, limits)
        self._restart(position=-1)

    def close(self) -> None:
        self.container.close()

    def _restart(self, *, position: int | None) -> None:
        self.position = position
        """Number of the frame decoded last; -1 before the first, None after a seek until it is known."""
        self._frame: VideoFrame | None = None
        self._damaged = False
        self._frames = self._decode()

    def start_over(self) -> None:
        """Return to the start of the file, as if it had just been opened."""
        self.container.close()
        self.container, self.stream = open_container(self._file, self._limits)
        self._restart(position=-1)

    def go_to(self, key: int, order: Timeline) -> None:
        """Seek to a key frame, or to where the container believes that it is."""
        if key == 0:
            return self.start_over()
        try:
            self.container.seek(int(order.pts[key]), stream=self.stream)
        except FFmpegError:
            return self.start_over()
        return self._restart(position=None)

    def advance(self, index: int, order: Timeline) -> VideoFrame | None:
        """Decode up to frame `index`; None if it does not follow the current position.

        Raises:
            VideoError: `undecodable`, if frames are counted and an earlier one is damaged.
        """
        if self.position == index and self._frame is not None:
            return self._frame
        for frame in self._frames:
            number = self._number(frame, order)
            # After a seek, frames before the first key frame may lack their reference frames.
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
                    self._damaged = True  # the decoder recovers at the next key frame
        except MemoryError:
            raise
        except DEMUX_ERRORS:
            self._damaged = True

    def upright(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        """Return a frame as uint8 [height, width, 3], rotated as displayed."""
        check_size(frame.width, frame.height, self._limits)  # the picture size may change within a stream
        try:
            rgb = frame.reformat(format="rgb24", threads=1).to_ndarray()
        except MemoryError:
            raise
        except (FFmpegError, ValueError):
            raise _undecodable() from None
        return np.ascontiguousarray(np.rot90(rgb, _rotation(frame) // 90)).astype(np.uint8, copy=False)


def _scaled(frame: VideoFrame, size: int) -> npt.NDArray[np.uint8]:
    """Return a frame as decord gives it for a width and a height: scaled in its own planes, then converted to RGB.

    The order of both steps changes levels by up to 69.
    """
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    steps = (graph.add("scale", f"{size}:{size}:flags=bilinear"), graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.link_nodes(source, *steps).configure()
    try:
        graph.vpush(frame)
        rgb = graph.vpull().to_ndarray()
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
