"""Writing and probing video files with PyAV, frames streamed."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Colorspace

from fastvideo.v1.dataset.config import VideoConfig

_BT709 = 1
_ENCODERS = {"h264": "libx264"}  # not x265: the one in PyAV 18 corrupts the heap for frames of 48x32
# A file depends on its encoder's threads, which would be as many as the host has cores.
_THREADS = 8
# x264's AVX-512 kernels read memory that nobody wrote, and videos then differ from one time to the next.
_INSTRUCTIONS = {"x264-params": "asm=SSE4.2"} if platform.machine() in ("x86_64", "AMD64") else {}


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a finished file holds, every frame decoded."""

    width: int
    height: int
    num_frames: int
    fps: float


class VideoWriter:
    """An mp4 in the making, yuv420p and BT.709, its index at the front so that browsers start at once.

    Equal frames make equal bytes, whatever the host, by one version of PyAV. The file at ``path`` is whole only after
    the ``with`` block ended well; sides must be even.
    """

    def __init__(self, path: str | Path, width: int, height: int, fps: int, config: VideoConfig) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"width={width}, height={height}: {config.codec} in yuv420p needs even sides")
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        stream = self._container.add_stream(_ENCODERS[config.codec], rate=fps)
        assert isinstance(stream, av.VideoStream), "a video encoder makes a video stream"
        self._stream = stream
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.options = {"crf": str(config.crf), "preset": config.preset, **_INSTRUCTIONS}
        self._time_base = self._stream.time_base = Fraction(1, fps)  # the stream's is another once the file has begun
        context = self._stream.codec_context
        context.thread_count = _THREADS
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # limited, as video has it
        self._shape = (height, width, 3)
        self._num_frames = 0

    def write(self, frames: np.ndarray) -> None:
        """Appends uint8 frames ``[t, h, w, c]``."""
        if frames.dtype != np.uint8 or frames.shape[1:] != self._shape:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; this file takes uint8 [t, {self._shape}]")
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = self._num_frames, self._time_base
            self._num_frames += 1
            self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def probe(path: str | Path | BytesIO) -> VideoInfo:
    """Decodes the whole file; raises ``ValueError`` if it is damaged or holds no video."""
    with _open_video(path) as (container, stream):
        num_frames = sum(1 for _ in container.decode(stream))
        rate = stream.average_rate or Fraction(0)
        return VideoInfo(width=stream.width, height=stream.height, num_frames=num_frames, fps=float(rate))


def iter_frames(path: str | Path | BytesIO) -> Iterator[np.ndarray]:
    """The frames one by one as uint8 ``[h, w, c]``; raises ``ValueError`` like :func:`probe`."""
    with _open_video(path) as (container, stream):
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


@contextmanager
def _open_video(path: str | Path | BytesIO) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    try:
        with av.open(path if isinstance(path, BytesIO) else str(path), "r") as container:
            yield container, container.streams.video[0]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is no video that plays: {error}") from error
