"""Opens media files with PyAV within limits, and finds out which frames they hold, without decoding pictures.

FFmpeg gets an open file and no protocol to open another one, and playlists and scripts are not among the allowed
containers. So it can access no other file and no network.
"""

import os
from collections.abc import Iterable
from fractions import Fraction
from io import FileIO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from model.video import timeline
from model.video.spec import VideoError, VideoLimits
from model.video.timeline import Timeline

CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "ogg")
"""FFmpeg's names of the allowed containers."""

CODECS = {
    **{name: name for name in ("h263", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4")},
    **{name: name for name in ("prores", "theora", "vp8", "vp9")},
    "av1": "libdav1d",
    "flv1": "flv",
}
"""The allowed codecs, each with FFmpeg's name of the decoder."""

DEMUX_ERRORS = (FFmpegError, IndexError)
"""What PyAV raises for damaged packets: `IndexError` for those of a stream that the file's start does not announce."""

MAX_STREAMS = 64
"""Most tracks of a file, of any kind; cameras and discs write about a dozen."""


class VideoFile(FileIO):
    """An open media file for FFmpeg, which expects -1 from an impossible seek, not an exception."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Seek, and return the new position; -1 if the position is impossible."""
        try:
            return super().seek(offset, whence)
        except (OSError, OverflowError):
            return -1


def open_container(file: VideoFile, limits: VideoLimits) -> tuple[InputContainer, VideoStream]:
    """Open the file and its best video stream for decoding, and check everything that its header states.

    Closing the container does not close the file.

    Raises:
        VideoError: `not_a_video`, `undecodable`, `no_video_stream`, `unsupported_codec`, `too_large`, `too_long`.
    """
    container = open_media(file, limits, decoders=CODECS.values())
    try:
        stream = _video_stream(container)
        check_size(stream.codec_context.width, stream.codec_context.height, limits)
        check_length(declared_duration(container, stream) or 0.0, stream.frames, limits)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
    except BaseException:
        container.close()
        raise
    return container, stream


def open_media(file: VideoFile, limits: VideoLimits, *, decoders: Iterable[str]) -> InputContainer:
    """Open the file from its start; of FFmpeg's decoders only `decoders` may run, to probe the streams as well.

    Closing the container does not close the file.

    Raises:
        VideoError: `not_a_video`, `undecodable`.
    """
    options = {
        "protocol_whitelist": "none",  # not the name of a protocol, so none is allowed
        "format_whitelist": ",".join(CONTAINERS),
        "max_streams": str(MAX_STREAMS),
        # The options below also apply to the decoders that FFmpeg runs on the first packets to probe the streams.
        "codec_whitelist": ",".join(decoders),
        "max_pixels": str(limits.max_pixels),
        "threads": "1",
        "fflags": "-genpts",  # FFmpeg's guesses for missing timestamps are wrong around B-frames
    }
    file.seek(0)
    try:
        return av.open(file, "r", options=options, metadata_errors="replace")
    except MemoryError:
        raise
    except FFmpegError:
        if _begins_like_a_video(file):
            raise VideoError("undecodable", "The video is damaged or incomplete.") from None
        raise VideoError("not_a_video", "The file is not a video of a known kind.") from None


def _begins_like_a_video(file: VideoFile) -> bool:
    """Return whether the first bytes are those of an allowed container."""
    file.seek(0)
    head = file.read(12)
    return head[4:8] in {b"ftyp", b"moov", b"mdat"} or head.startswith((b"\x1a\x45\xdf\xa3", b"RIFF", b"FLV", b"OggS"))


def _video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise VideoError("no_video_stream", "The file has no video stream.")
    if stream.codec_context is None or stream.codec_context.codec.canonical_name not in CODECS:
        raise VideoError("unsupported_codec", "The video is encoded in a way that is not supported.")
    return stream


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Raise `too_large` if a picture of this size exceeds the limits."""
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise VideoError(
            "too_large",
            f"Pictures may have sides of up to {limits.max_side} and in all {limits.max_pixels} pixels.",
        )


def check_length(duration: float, num_frames: int, limits: VideoLimits) -> None:
    """Raise `too_long` if the seconds or the frames exceed the limits."""
    if duration > limits.max_duration:
        raise VideoError("too_long", f"The video is longer than {limits.max_duration:g} seconds.")
    if num_frames > limits.max_frames:
        raise VideoError("too_long", f"The video has more than {limits.max_frames} frames.")


def declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the duration in seconds that the file states or FFmpeg estimates; None if neither does."""
    if stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / av.time_base
    return None


def declared_rate(stream: VideoStream) -> Fraction | None:
    """Return the average frame rate that the file states; None without one."""
    rate = stream.average_rate or stream.guessed_rate
    return rate if rate and rate > 0 else None


def read_timeline(file: VideoFile, limits: VideoLimits) -> Timeline:
    """Find the frames of the file: from its index if that shows a constant rate, else from all its packets.

    Raises:
        VideoError: as `open_container`, and `no_frames`; `undecodable` if packets in the index are missing.
    """
    container, stream = open_container(file, limits)
    with container:
        found = _from_index(container, stream, os.fstat(file.fileno()).st_size)
    if found is not None:
        return found
    container, stream = open_container(file, limits)
    with container:
        return _from_packets(container, stream, limits)


def _from_index(container: InputContainer, stream: VideoStream, file_size: int) -> Timeline | None:
    """Use the index of an MP4, which lists decoding times; these suffice at a constant rate, if the end agrees."""
    if container.format.name != CONTAINERS[0] or len(stream.index_entries) != stream.frames:
        return None
    entries = list(stream.index_entries)
    steps = np.diff([entry.timestamp for entry in entries])
    regular = len(steps) > 0 and steps[0] > 0 and bool((steps == steps[0]).all())
    if not regular or any(entry.is_discard for entry in entries) or stream.start_time is None:
        return None
    assert stream.time_base is not None
    keys = [entry.is_keyframe for entry in entries]
    whole = all(entry.pos + entry.size <= file_size for entry in entries)
    found = timeline.from_rate(stream.start_time, int(steps[0]), keys=keys, time_base=stream.time_base, whole=whole)
    return found if not whole or _end_holds(container, stream, found) else None


def _end_holds(container: InputContainer, stream: VideoStream, found: Timeline) -> bool:
    """Return whether the packets from the last key frame on have the timestamps of the timeline."""
    try:
        container.seek(int(found.pts[-1]), stream=stream)
        last = sorted(packet.pts or 0 for packet in container.demux(stream) if packet.size)
    except DEMUX_ERRORS:
        return False
    return bool(last) and last == found.pts[-len(last) :].tolist()


def _from_packets(container: InputContainer, stream: VideoStream, limits: VideoLimits) -> Timeline:
    moments: list[int | None] = []
    keys: list[bool] = []
    num_packets = 0
    try:
        for packet in container.demux(stream):
            num_packets += packet.size > 0
            check_length(0.0, num_packets, limits)
            if packet.size and _is_shown(packet):
                moments.append(packet.pts)
                keys.append(packet.is_keyframe)
    except MemoryError:
        raise
    except DEMUX_ERRORS:
        pass  # keep the frames before the damage
    if not moments:
        raise VideoError("no_frames", "The video has no frames.")
    if container.format.name == CONTAINERS[0] and num_packets < stream.frames == len(stream.index_entries):
        raise VideoError("undecodable", "The file ends before its last frame.")
    assert stream.time_base is not None
    found = timeline.from_packets(moments, keys=keys, time_base=stream.time_base)
    if found is None:
        return timeline.counted(len(moments), declared_rate(stream))
    check_length(float(found.timestamps()[-1]), found.num_frames, limits)
    return found


def _is_shown(packet: "Packet[VideoStream]") -> bool:
    """Return False for packets that an edit list skips, and for VP8's hidden frames (RFC 6386, 9.1: `show_frame`)."""
    if packet.is_discard:
        return False
    return packet.stream.codec_context.codec.canonical_name != "vp8" or bool(bytes(packet)[0] >> 4 & 1)
