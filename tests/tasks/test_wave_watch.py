"""A wave is shown while it runs; that it cannot be shown is no reason to end it."""

import logging

from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.waves.wave import WaveShard
from fastvideo.v1.dataset.waves.wave_report import read_reports
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.pipelines.phase import Phase
from tasks import wave_watch
from tasks.board import WaveBoard
from tasks.wave_watch import WaveEnd, WaveWatch
from tests.tasks.test_run_view import Artifact


def test_an_outage_of_the_store_ends_no_wave(make_config, monkeypatch, caplog):
    config = make_config('{"prompt": "a red ball"}')
    run = plan_run(config).run
    shard = WaveShard(name="decode-0000", phase=Phase.DECODE, path="", count=1, needs=(), layout=ParallelLayout())
    monkeypatch.setattr(wave_watch, "LiveArtifact", Artifact)
    monkeypatch.setattr(wave_watch, "get_run_logger", lambda: logging.getLogger("wave"))
    watch = WaveWatch(config, run.name, "w", WaveBoard([shard]))
    write_report = wave_watch.write_report

    def outage(*_):
        raise StoreUnavailable("s3://cats is away")

    monkeypatch.setattr(wave_watch, "shard_paths", lambda run, wave: ["a shard"])
    monkeypatch.setattr(wave_watch, "write_report", outage)
    assert watch.look() is WaveEnd.DONE
    assert [*watch.finish(WaveEnd.DONE).phases] == ["decode"]
    assert caplog.messages == ["s3://cats is away; the wave goes on"] * 2
    assert not read_reports(run, "w")
    monkeypatch.setattr(wave_watch, "write_report", write_report)
    assert [watch.finish(WaveEnd.DONE)] == read_reports(run, "w")


def test_a_wave_that_another_run_closes_at_its_end_ends_well(make_config, monkeypatch, caplog):
    config = make_config('{"prompt": "a red ball"}')
    run = plan_run(config).run
    path = "runs/x/waves/w/decode-0000.parquet"
    shard = WaveShard(name="decode-0000", phase=Phase.DECODE, path=path, count=1, needs=(), layout=ParallelLayout())
    monkeypatch.setattr(wave_watch, "LiveArtifact", Artifact)
    monkeypatch.setattr(wave_watch, "get_run_logger", lambda: logging.getLogger("wave"))
    board = WaveBoard([shard])
    watch = WaveWatch(config, run.name, "w", board)
    board.newest_videos.append((path, "an id"))
    watch.finish(WaveEnd.DONE)
    assert caplog.messages and "no such object" in caplog.messages[0]
