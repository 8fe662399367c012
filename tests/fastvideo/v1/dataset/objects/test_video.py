"""Videos are written in chunks and play; quality numbers mean what they say."""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from fastvideo.v1.dataset.config import VideoConfig
from fastvideo.v1.dataset.objects.quality import QualityMeter
from fastvideo.v1.dataset.objects.video import VideoInfo, VideoWriter, iter_frames, probe


def moving_square(num_frames: int, height: int, width: int) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), (20, 60, 140), np.uint8)
    for number, frame in enumerate(frames):
        frame[8:24, number : number + 16] = (230, 120, 30)
    return frames


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "fps"),
    [(17, 64, 64, 8), (1, 48, 80, 16), (5, 32, 34, 24), (97, 64, 128, 16)],
)
def test_a_written_video_has_its_size_frames_rate_and_colours(
    tmp_path: Path, num_frames: int, height: int, width: int, fps: int
) -> None:
    frames = moving_square(num_frames, height, width)
    path = tmp_path / "x.mp4"
    with VideoWriter(path, width, height, fps, VideoConfig(crf=8)) as writer:
        writer.write(frames[:1])
        writer.write(frames[1:])
    assert probe(path) == VideoInfo(width=width, height=height, num_frames=num_frames, fps=fps)
    decoded = np.stack(list(iter_frames(path)))
    assert np.abs(decoded.astype(int) - frames).mean() < 4
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")  # a browser starts before the end has come
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, int(context.colorspace)) == ("yuv420p", 1)


def test_equal_frames_make_equal_bytes_whatever_lay_in_memory() -> None:
    code = """if True:
        import hashlib, pathlib, sys, tempfile
        import numpy as np
        from fastvideo.v1.dataset.config import VideoConfig
        from fastvideo.v1.dataset.objects.video import VideoWriter
        rows, columns, number = np.ogrid[:64, :64, :17]
        wave = 90 * np.sin(columns / 23 + number / 7) + 30 * np.cos((rows + 0.3 * columns) / 11 - number / 5)
        noise = np.random.default_rng(0).normal(0, 4, (64, 64))
        wave += np.stack([np.roll(noise, 2 * i, 1) for i in range(17)], axis=-1)
        frames = (128 + wave).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)[..., None].repeat(3, axis=-1)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "x.mp4")
            with VideoWriter(path, 64, 64, 16, VideoConfig()) as writer:
                for chunk in np.split(frames, [1, 5, 9, 13]):
                    writer.write(chunk)
            print(hashlib.sha256(path.read_bytes()).hexdigest())
    """
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "MALLOC_PERTURB_": str(fill)},  # glibc fills what it hands out
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in (0, 85, 170)
    }
    assert len(digests) == 1


def test_a_lower_crf_is_closer_and_larger(tmp_path: Path) -> None:
    frames = np.random.default_rng().integers(0, 255, (4, 64, 64, 3), np.uint8)
    sizes = []
    for crf in (10, 40):
        with VideoWriter(tmp_path / f"{crf}.mp4", 64, 64, 8, VideoConfig(crf=crf)) as writer:
            writer.write(frames)
        sizes.append((tmp_path / f"{crf}.mp4").stat().st_size)
    assert sizes[0] > 2 * sizes[1]


def test_odd_sides_and_wrong_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"width=63.*even"):
        VideoWriter(tmp_path / "x.mp4", 63, 64, 8, VideoConfig())
    with VideoWriter(tmp_path / "x.mp4", 64, 32, 8, VideoConfig()) as writer:
        writer.write(np.zeros((1, 32, 64, 3), np.uint8))
        for wrong in (np.zeros((1, 64, 32, 3), np.uint8), np.zeros((1, 32, 64, 3), np.float32)):
            with pytest.raises(ValueError, match="frames are"):
                writer.write(wrong)


def test_a_damaged_video_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    with VideoWriter(path, 64, 64, 8, VideoConfig()) as writer:
        writer.write(moving_square(9, 64, 64))
    for data in (path.read_bytes()[:-200], b"", b"no video"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="no video that plays"):
            probe(path)


def test_quality_tells_black_flat_and_still_videos_apart() -> None:
    def measure(*chunks: np.ndarray):
        meter = QualityMeter()
        for chunk in chunks:
            meter.update(chunk)
        return meter.result()

    black, white = np.zeros((4, 8, 8, 3), np.uint8), np.full((4, 8, 8, 3), 255, np.uint8)
    assert measure(black).black_frames == 4 and measure(black).mean_luminance == 0
    assert measure(white).mean_luminance == pytest.approx(1) and measure(white).contrast == pytest.approx(0, abs=1e-6)
    half = black.copy()
    half[:, :4] = 255
    assert measure(half).contrast == pytest.approx(0.5) and measure(half).motion == 0
    flicker = np.concatenate([black[:1], white[:1], black[:1]])
    assert measure(flicker).motion == pytest.approx(1)
    assert measure(flicker[:2], flicker[2:]) == measure(flicker)
