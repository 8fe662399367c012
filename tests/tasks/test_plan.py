"""What is planned next, while waves are at work."""

import json

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.waves.shards import write_waves
from fastvideo.v1.dataset.waves.wave import read_wave
from fastvideo.v1.pipelines.phase import Phase
from tasks.plan import close_wave, cut_waves

PROMPTS = [json.dumps({"prompt": f"p{number}"}) for number in range(4)]


def test_the_first_shards_of_a_large_model_are_as_long_as_its_benchmarks_say(make_config, monkeypatch):
    monkeypatch.setattr("tasks.plan.benchmark_seconds", lambda *_: {Phase.DENOISE: 2700.0, Phase.DECODE: 1800.0})
    config = make_config(*PROMPTS)
    run = plan_run(config).run
    (wave,) = cut_waves.fn(config, run.name, 0, 1)["waves"]
    shards = [(shard.phase, shard.count) for shard in read_wave(run, wave)]
    assert shards[1:] == [(Phase.DENOISE, 2), (Phase.DENOISE, 2), (Phase.DECODE, 3), (Phase.DECODE, 1)]


def test_objects_of_waves_at_work_are_left_to_their_jobs(make_config, make_object):
    config = make_config(*PROMPTS, shard_size=1, wave_size=2, decode_shard_size=2)
    run = plan_run(config).run
    waves = list(write_waves(run, scan(run), config, 0, 2))
    ids = [sample.id for sample in run.iter_samples()]
    for id in ids:
        make_object(run, Phase.DENOISE, id)
    cut_waves.fn(config, run.name, 2, 1, [waves[0][0].wave])
    assert read_ledger(run, Phase.DENOISE)["id"].to_pylist() == sorted(ids[2:])
    first, second = waves[0][0].wave, waves[1][0].wave
    close_wave.fn(config.output, run.name, second)
    assert read_ledger(run, Phase.DENOISE)["id"].to_pylist() == sorted(ids[2:]), "the first is at work still"
    close_wave.fn(config.output, run.name, first)
    assert read_ledger(run, Phase.DENOISE)["id"].to_pylist() == sorted(ids)
