import json

import pytest

from fastvideo.v1.dataset.waves.wave import WaveShard
from fastvideo.v1.dataset.waves.wave_report import WaveReport
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.pipelines.phase import Phase
from tasks.artifacts import duration, escape
from tasks.board import WaveBoard


@pytest.fixture
def board():
    shards = [(Phase.ENCODE, 0, 2), (Phase.DENOISE, 0, 4), (Phase.DENOISE, 1, 4)]
    return WaveBoard(
        [
            WaveShard(name=f"{phase}-{index:04d}", phase=phase, path="", count=count, needs=(), layout=ParallelLayout())
            for phase, index, count in shards
        ]
    )


def feed(board, shard, *events):
    for event in events:
        board.take({"event": event, "shard": shard, "cause": "preempted", "message": "gone"})


def test_progress_counts_rows(board):
    assert board.report().percent == 0
    feed(board, "encode-0000", "started", "committed")
    assert board.report().percent == 10
    board.finish("encode-0000")
    feed(board, "denoise-0000", "started", "committed", "skipped", "failed")
    assert board.report().percent == 50


def test_a_restarted_shard_is_not_counted_twice(board):
    feed(board, "denoise-0000", "started", "committed", "committed", "retrying", "started", "skipped", "skipped")
    assert board.report().percent == 20
    assert board.table()[0]["attempts"] == 2


def test_what_lacks_its_input_is_not_made(board):
    board.take({"event": "started", "shard": "denoise-0000"})
    board.take({"event": "skipped", "shard": "denoise-0000", "reason": "its input is missing: x"})
    assert board.report().percent == 0


def test_failed_shards_come_first(board):
    feed(board, "encode-0000", "started")
    board.finish("denoise-0001", "bad input", "height=17")
    assert [row["shard"] for row in board.table()] == ["denoise-0001", "encode-0000", "denoise-0000"]
    assert board.failed() == [{"shard": "denoise-0001", "cause": "bad input", "message": "height=17"}]


def test_events_of_other_shards_are_passed_over(board):
    feed(board, "decode-0007", "started", "committed")
    assert board.report().committed == 0 and not board.newest_videos


def test_the_report_tells_pace_and_price(board):
    board.take({"event": "committed", "shard": "encode-0000", "seconds": 1.0})
    board.finish("encode-0000")
    assert board.report().seconds_left is None, "no sample has been denoised yet"
    board.take({"event": "started", "shard": "denoise-0000", "task_run": "x"})
    board.take({"event": "committed", "shard": "denoise-0000", "seconds": 4.0})
    board.take({"event": "failed", "shard": "denoise-0000"})
    told = board.report()
    assert told.gpu_seconds_each == 1.0 + 4.0 and told.bad_share == 1 / 8
    assert told.seconds_left == pytest.approx(told.seconds * 6 * 4.0 / 5.0)
    assert [row["task run"] for row in board.table()] == ["x", "", ""]
    assert WaveReport.from_dict(json.loads(json.dumps(told.to_dict()))) == told


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "…"), (3, "3 s"), (61, "1 min 1 s"), (7300, "2 h 1 min"), (180_000, "2 d 2 h")]
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("[a](javascript:b)", "&#91;a](javascript:b)"),
        ("a|b`c`\nd", "a&#124;b&#96;c&#96; d"),
        (7, 7),
    ],
)
def test_text_in_artifacts_is_inert(text, shown):
    assert escape(text) == shown


def test_long_text_is_cut():
    assert escape("x" * 1000) == "x" * 299 + "…"
