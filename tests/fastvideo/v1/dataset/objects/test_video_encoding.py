"""A video encoded beside its making: the same bytes, few frames held, and errors that come up."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastvideo.v1.dataset.config import VideoConfig
from fastvideo.v1.dataset.objects.quality import QualityMeter
from fastvideo.v1.dataset.objects.video import VideoWriter
from fastvideo.v1.dataset.objects.video_encoding import VideoEncoding


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def draw_chunks():
    return [np.random.default_rng().integers(0, 256, (length, 32, 48, 3), np.uint8) for length in (1, 4, 4, 4)]


def test_bytes_and_numbers_are_those_of_a_writer_on_the_spot(tmp_path, thread):
    chunks, meter = draw_chunks(), QualityMeter()
    with VideoWriter(tmp_path / "here.mp4", 48, 32, 8, VideoConfig()) as writer:
        for chunk in chunks:
            writer.write(chunk)
            meter.update(chunk)
    with VideoEncoding(thread, VideoWriter(tmp_path / "beside.mp4", 48, 32, 8, VideoConfig())) as encoding:
        for chunk in chunks:
            encoding.take(chunk)
    assert encoding.result() == meter.result() and encoding.seconds > 0
    assert (tmp_path / "beside.mp4").read_bytes() == (tmp_path / "here.mp4").read_bytes()


class SlowWriter:
    """Writes nothing before it is let."""

    def __init__(self) -> None:
        self.may_write = threading.Event()
        self.num_written = 0
        self.ended_with: list[type | None] = []

    def write(self, frames) -> None:
        assert self.may_write.wait(10)
        if frames.shape[0] == 4 and self.num_written == 2:
            raise OSError("the disk is full")
        self.num_written += 1

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        self.ended_with.append(kind)


def test_no_more_than_a_few_chunks_wait_for_the_encoder(thread):
    writer, taken = SlowWriter(), []

    def take_all():
        with VideoEncoding(thread, writer) as encoding:
            for chunk in draw_chunks():
                encoding.take(chunk)
                taken.append(chunk)

    making = threading.Thread(target=take_all)
    making.start()
    making.join(0.3)
    assert making.is_alive() and len(taken) == 2
    writer.may_write.set()
    making.join(10)
    assert not making.is_alive()


@pytest.mark.parametrize("num_chunks", [3, 9])
def test_what_goes_wrong_comes_up_in_the_block_or_with_the_result(thread, num_chunks):
    writer = SlowWriter()
    writer.may_write.set()
    with pytest.raises(OSError, match="disk is full"):
        with VideoEncoding(thread, writer) as encoding:
            for _ in range(num_chunks):
                encoding.take(np.zeros((4, 2, 2, 3), np.uint8))
        encoding.result()
    assert writer.ended_with == [OSError], "it is closed, once, and not as if it were whole"
