"""A video that is encoded and measured on another thread than that which makes its frames."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

import numpy as np

from fastvideo.v1.dataset.objects.quality import Quality, QualityMeter
from fastvideo.v1.dataset.objects.video import VideoWriter

_MOST_AHEAD = 2  # chunks of frames that wait for the encoder: what is held of a video stays small


class VideoEncoding:
    """Takes frames within the ``with`` block; what is left to do after it is done beside whatever follows.

    ``thread`` is the only one of its pool, and may have several videos in turn. Where the block ends with an error, the
    file is closed as it is before the error goes on.
    """

    def __init__(self, thread: ThreadPoolExecutor, writer: VideoWriter) -> None:
        self.seconds = 0.0
        """That the thread has worked at it."""
        self._thread, self._writer, self._meter = thread, writer, QualityMeter()
        self._ahead: deque[Future[None]] = deque()
        self._end: Future[Quality] | None = None

    def take(self, frames: np.ndarray) -> None:
        """Hands over uint8 frames ``[t, h, w, c]``, once few wait; raises what an earlier call's met with."""
        while len(self._ahead) >= _MOST_AHEAD:
            self._ahead.popleft().result()
        self._ahead.append(self._thread.submit(self._write, frames))

    def result(self) -> Quality:
        """The numbers of the video, once its file is whole; raises what its end met with."""
        assert self._end is not None, "the block comes first"
        return self._end.result()

    def wait(self) -> None:
        """Returns once nothing writes to the file any more, be it whole or not."""
        wait([self._end] if self._end else [])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._end = self._thread.submit(self._finish)
        else:
            self._thread.submit(self._writer.__exit__, kind, error, at).result()

    def _write(self, frames: np.ndarray) -> None:
        started = time.monotonic()
        self._writer.write(frames)
        self._meter.update(frames)
        self.seconds += time.monotonic() - started

    def _finish(self) -> Quality:
        started = time.monotonic()
        with self._writer:
            for chunk in self._ahead:
                chunk.result()
        self.seconds += time.monotonic() - started
        return self._meter.result()
