"""Waves and their shards: what is missing is made, once, and nothing else."""

import json
from dataclasses import replace
from itertools import chain

import pyarrow as pa
import pytest

from fastvideo.v1.dataset.layout import object_path, wave_dir
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.progress.status import run_status
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import to_samples
from fastvideo.v1.dataset.waves.open_waves import close_wave, open_waves, read_held
from fastvideo.v1.dataset.waves.shards import Shard, cut_denoise, read_shard, shard_size, write_shards, write_waves
from fastvideo.v1.dataset.waves.wave import read_wave
from fastvideo.v1.dataset.waves.wave_report import WaveReport, read_reports, write_report
from fastvideo.v1.distributed.choice import START_SECONDS, LayoutChoice, Tail
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from tests.fastvideo.v1.dataset.run_contents import ids, inputs, make_wave, prompts


def test_waves_make_all_of_the_samples_and_each_once(make_config, make_object) -> None:
    config = make_config(*prompts(10), shard_size=2, wave_size=3, text_shard_size=4, decode_shard_size=5)
    run = plan_run(config).run
    sizes = []
    for number in range(1, 5):
        shards = write_shards(run, scan(run), config, number)
        if not shards:
            break
        assert [shard.phase for shard in shards] == sorted((s.phase for s in shards), key=ALL_PHASES.index)
        made = {phase: [read_shard(run, s.path) for s in shards if s.phase == phase] for phase in ALL_PHASES}
        denoised = pa.concat_tables(made[Phase.DENOISE])
        assert denoised["id"].to_pylist() == pa.concat_tables(made[Phase.DECODE])["id"].to_pylist()
        assert set(denoised["prompt"].to_pylist()) == set(pa.concat_tables(made[Phase.ENCODE])["text"].to_pylist()) - {
            ""
        }
        assert all(shard.count == len(read_shard(run, shard.path)) for shard in shards)
        sizes.append([shard.count for shard in shards])
        make_wave(run, shards, make_object)  # a second creation of any object would fail
    assert sizes == [[4, 3, 2, 2, 2, 5, 1], [4, 2, 2, 4]]
    assert run_status(config.output).exit_code == 0


def test_one_scan_cuts_many_waves_that_share_no_sample(make_config, make_object) -> None:
    config = make_config(*prompts(11), shard_size=2, wave_size=2)
    run = plan_run(config).run
    make_object(run, Phase.DENOISE, ids(run)[1])
    waves = list(write_waves(run, scan(run), config, 5, 9))
    assert [shards[0].wave.split("-")[0] for shards in waves] == ["0005", "0006", "0007"]
    rows = {phase: [wave_ids(run, shards, phase) for shards in waves] for phase in ALL_PHASES}
    assert [*chain(*rows[Phase.DECODE])] == ids(run)
    assert [*chain(*rows[Phase.DENOISE])] == [ids(run)[0], *ids(run)[2:]]
    assert [len(wave) for wave in rows[Phase.DECODE]] == [4, 4, 3]
    negative = next(id for id in rows[Phase.ENCODE][0] if id not in inputs(run))
    assert all(wave[-1] == negative for wave in rows[Phase.ENCODE]), "each can run without the others"
    assert [len(list(write_waves(run, scan(run), config, 0, count))) for count in (0, 2)] == [0, 2]


def wave_ids(run: Run, shards: list[Shard], phase: Phase) -> list[str]:
    return [id for shard in shards if shard.phase is phase for id in read_shard(run, shard.path)["id"].to_pylist()]


def test_shards_carry_whole_samples(make_config) -> None:
    config = make_config(json.dumps({"prompt": "größer", "seed": 5, "height": 128, "guidance": 2}))
    run = plan_run(config).run
    shards = {shard.phase: shard for shard in write_shards(run, scan(run), config, 7)}
    (sample,) = to_samples(read_shard(run, shards[Phase.DENOISE].path), {})
    assert sample == next(run.iter_samples())
    close_wave(run, shards[Phase.DENOISE].wave)
    with pytest.raises(FileNotFoundError):
        read_shard(run, shards[Phase.DENOISE].path)


def test_only_what_is_missing_is_cut(make_config, make_object) -> None:
    config = make_config(*prompts(6), shard_size=100)
    run = plan_run(config).run
    make_wave(run, write_shards(run, scan(run), config, 1), make_object)
    lost_video, lost_latents = ids(run)[3], ids(run)[5]
    run.objects.delete(object_path(Phase.DECODE, run.keys[Phase.DECODE], lost_video))
    run.objects.delete(object_path(Phase.DENOISE, run.keys[Phase.DENOISE], lost_latents))
    shards = write_shards(run, scan(run), config, 2)
    assert [(s.phase, read_shard(run, s.path)["id"].to_pylist()) for s in shards] == [
        (Phase.DENOISE, [lost_latents]), (Phase.DECODE, [lost_video]),
    ]  # fmt: skip


def test_shards_follow_measured_seconds_and_the_jobs_at_hand(make_config) -> None:
    config = make_config(*prompts(1000))
    run = plan_run(config).run
    assert shard_size(scan(run), config, Phase.DENOISE, ParallelLayout(), 1000) == 256
    sizes = (
        shard_size(scan(run), config, Phase.DENOISE, ParallelLayout(data=2), 1000, seconds) for seconds in (270.0, 0.1)
    )
    assert [*sizes] == [40, 512], "by benchmarks until there are measured ones, no more than without"
    many_jobs = make_config(*prompts(1000), jobs=10)
    assert shard_size(scan(run), many_jobs, Phase.DENOISE, ParallelLayout(), 1000) == 50
    with LedgerWriter(run, Phase.DENOISE) as ledger:
        for number in range(5):
            ledger.add(LedgerRow(id=str(number), bytes=1, sha256="", started=0.0, seconds=90.0))
    assert shard_size(scan(run), config, Phase.DENOISE, ParallelLayout(), 1000, expected=900.0) == 60
    on_gpus = make_config(*prompts(1), engine={"num_gpus": 16, "sp_size": 2})
    assert shard_size(scan(run), on_gpus, Phase.DENOISE, on_gpus.engine.layout, 1000) == 480, "a sample a model group"
    assert shard_size(scan(run), make_config(*prompts(1), shard_size=7), Phase.DENOISE, ParallelLayout(), 1000) == 7


def test_a_shard_tells_the_layout_of_its_job(make_config) -> None:
    config = make_config(*prompts(3))
    run = plan_run(config).run
    layouts = {Phase.ENCODE: ParallelLayout(data=4), Phase.DENOISE: ParallelLayout(cfg=2, ulysses=2)}
    layouts[Phase.DECODE] = ParallelLayout(data=2, tensor=2)
    choices = {phase: LayoutChoice(layout=layout, reason="a test") for phase, layout in layouts.items()}
    (first, *_) = write_shards(run, scan(run), config, 0, choices)
    assert {shard.phase: shard.layout for shard in read_wave(run, first.wave)} == layouts


def test_samples_too_few_for_all_groups_are_a_shard_of_another_layout(make_config) -> None:
    four = ParallelLayout(data=4)
    spread = ParallelLayout(cfg=2, ulysses=2)
    saved = {1: START_SECONDS + 1, 3: START_SECONDS - 1}
    tails = {count: Tail(layout=spread, saved=seconds, reason="sooner") for count, seconds in saved.items()}
    choice = LayoutChoice(layout=four, reason="a test", tails=tails)
    assert cut_denoise(9, 8, choice) == [(8, four, None), (1, spread, "sooner")]
    assert cut_denoise(10, 8, choice) == [(8, four, None), (2, four, None)], "two are not done sooner"
    assert cut_denoise(7, 8, choice) == [(7, four, None)], "another start takes longer than what it saves"
    assert cut_denoise(3, 8, choice) == [(3, spread, "sooner")], "no other start"
    assert cut_denoise(10, 5, choice) == 2 * [(4, four, None), (1, spread, "sooner")]
    config = make_config(*prompts(5))
    run = plan_run(config).run
    shards = write_shards(run, scan(run), config, 0, dict.fromkeys(ALL_PHASES, choice))
    wave = [shard for shard in read_wave(run, shards[0].wave) if shard.phase is Phase.DENOISE]
    assert [(shard.count, shard.layout) for shard in wave] == [(4, four), (1, spread)]
    made = pa.concat_tables(read_shard(run, shard.path).replace_schema_metadata() for shard in wave)
    assert made["id"].to_pylist() == ids(run)


def test_groups_of_data_get_as_many_samples_each(make_config) -> None:
    config = make_config(*prompts(1))
    found = scan(plan_run(config).run)
    for count, jobs, size in ((3, 1, 3), (5, 2, 3), (30, 2, 8), (98, 1, 100)):
        jobs_at_once = replace(config, jobs=jobs)
        assert shard_size(found, jobs_at_once, Phase.DENOISE, ParallelLayout(data=4), count) == size, (count, jobs)


def test_open_waves_share_no_sample(make_config, make_object) -> None:
    pools = {"wave": "run-wave/gpu", "in_flight": 3}
    config = make_config(*prompts(10), shard_size=2, pools=pools)
    run = plan_run(config).run
    waves: list[list[Shard]] = []
    while shards := write_shards(run, scan(run), config, len(waves), held=read_held(run, open_waves(run))):
        waves.append(shards)
    samples = [id for shards in waves for id in wave_ids(run, shards, Phase.DENOISE)]
    assert samples == ids(run), "every sample lies in one wave"
    assert [len(wave_ids(run, shards, Phase.DENOISE)) for shards in waves] == [4, 4, 2], "each at work gets a share"
    assert all(inputs(run).keys() & wave_ids(run, shards, Phase.ENCODE) for shards in waves)
    assert open_waves(run) == [shards[0].wave for shards in waves]
    lost = wave_ids(run, waves[1], Phase.DENOISE)
    close_wave(run, waves[1][0].wave)
    assert len(open_waves(run)) == 2 and read_wave(run, waves[1][0].wave) == []
    again = write_shards(run, scan(run), config, 9, held=read_held(run, open_waves(run)))
    assert wave_ids(run, again, Phase.DENOISE) == lost


def test_a_wave_that_is_being_closed_has_no_shards_and_no_reports(make_config, monkeypatch) -> None:
    config = make_config(*prompts(2))
    run = plan_run(config).run
    (first, *others) = write_shards(run, scan(run), config, 0)
    write_report(run, first.wave, WaveReport(seconds=1.0, phases={}))
    assert read_wave(run, first.wave) and read_reports(run, first.wave)
    found = run.output.list(wave_dir(run.name, first.wave))
    monkeypatch.setattr(Store, "list", lambda store, prefix: found)  # before it was closed
    run.output.delete_many([info.path for info in found if info.path != others[0].path])
    assert read_wave(run, first.wave) == [] and read_reports(run, first.wave) == []


def test_a_wave_that_makes_inputs_alone_is_held_too(make_config, make_object) -> None:
    config = make_config(*prompts(2))
    run = plan_run(config).run
    for id in ids(run):
        make_object(run, Phase.DENOISE, id)
        make_object(run, Phase.DECODE, id)
    (first, *_) = write_shards(run, scan(run), config, 0)
    assert first.phase is Phase.ENCODE
    assert write_shards(run, scan(run), config, 1, held=read_held(run, [first.wave])) == []
