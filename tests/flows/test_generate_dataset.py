"""The orchestration, with jobs that commit at once: what runs, in which order, how often, and what is told."""

import json
import shutil
from pathlib import Path

import pytest

import fastvideo
import tasks.plan
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.config import RunConfig, VideoConfig, config_values, parse_config
from fastvideo.v1.dataset.layout import video_path
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.status import run_status
from fastvideo.v1.dataset.runs.run import list_runs, open_run
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.failures import Cause, JobFailure
from flows.generate_dataset import RunIncomplete, generate_dataset, retry_failed
from tasks.events import listening

pytestmark = [pytest.mark.usefixtures("prefect_harness"), pytest.mark.xdist_group("prefect"), pytest.mark.slow]


@pytest.fixture
def config(tmp_path, write_prompts):
    def make(count=8, **values):
        values = {"shard_size": 2, "decode_shard_size": 4, "jobs": 2, **values}
        return RunConfig(prompts=write_prompts(count), output=str(tmp_path / "out"), **values)

    return make


def test_every_sample_is_made_once_in_order(jobs, config):
    jobs.seconds = 0.05
    summary = generate_dataset(config())
    assert summary["exit_code"] == 0 and summary["published"]["num_rows"] == 8
    assert len(json.dumps(summary)) < 2000
    assert set(jobs.commits.values()) == {1} and len(jobs.commits) == 9 + 8 + 8
    denoise = [f"denoise-000{index}" for index in range(4)]
    assert sorted(jobs.launched) == ["decode-0000", "decode-0001", *denoise, "encode-0000"]
    assert jobs.launched[0] == "encode-0000" and jobs.ended[0] == "encode-0000"
    assert jobs.launched.index("decode-0000") < jobs.launched.index("denoise-0003"), "videos do not wait for the wave"
    assert jobs.most_at_once == 2


def test_what_is_there_is_not_made_again(jobs, config):
    generate_dataset(config())
    jobs.launched.clear()
    assert generate_dataset(config())["new"] == 0
    assert jobs.launched == []
    assert generate_dataset(config(count=10))["new"] == 2
    assert set(jobs.commits.values()) == {1} and len(jobs.commits) == 11 + 10 + 10


def test_waves_follow_each_other(jobs, config):
    seen = []
    with listening(lambda event: seen.append(event["event"])):
        generate_dataset(config(wave_size=2))
    assert seen.count("wave") == 2 and seen[0] == "planned"
    run = open_run(config().output)
    assert not run.output.list(f"runs/{run.name}/waves"), "a wave's shards are cleared away"


def test_a_scan_cuts_as_many_waves_as_were_cut_before_it(jobs, config, monkeypatch):
    scans, scan = [], tasks.plan.scan
    monkeypatch.setattr("tasks.plan.scan", lambda run: scans.append(run) or scan(run))
    seen = []
    with listening(lambda event: seen.append(event["event"])):
        assert generate_dataset(config(count=16, wave_size=2))["exit_code"] == 0
    assert seen.count("wave") == 4 and len(scans) == 4, "before waves 0, 1 and 2, and at the end"
    assert set(jobs.commits.values()) == {1}


def test_a_failed_shard_stops_no_other_and_the_run_says_so(jobs, config):
    jobs.failures["denoise-0001"] = [JobFailure(Cause.BAD_INPUT, "height=17")] * 9
    # The next wave cuts what is left into a shard of another name, which works.
    summary = generate_dataset(config())
    assert summary["exit_code"] == 0
    assert jobs.launched.count("denoise-0001") == 1, "a bad input is not tried again"
    assert set(jobs.commits.values()) == {1}


def test_without_progress_the_run_ends_and_tells_why(jobs, config):
    for index in range(4):
        jobs.failures[f"denoise-000{index}"] = [JobFailure(Cause.OUT_OF_MEMORY, "CUDA out of memory")] * 9
    with pytest.raises(RunIncomplete, match="denoise 8, decode 8; denoise-0000: out of memory: CUDA") as raised:
        generate_dataset(config())
    assert raised.value.summary["exit_code"] == 3
    assert raised.value.summary["phases"]["encode"]["done"] == 9
    assert jobs.launched.count("denoise-0003") == 4, "twice a wave; the second wave changed nothing"
    jobs.failures.clear()
    assert generate_dataset(config())["exit_code"] == 0


def test_infrastructure_and_preemption_are_tried_again(jobs, config):
    jobs.failures["encode-0000"] = [JobFailure(Cause.INFRASTRUCTURE, "lost")] * 3
    jobs.failures["denoise-0002"] = [JobFailure(Cause.PREEMPTED, "spot")] * 6
    events = []
    with listening(events.append):
        assert generate_dataset(config())["exit_code"] == 0
    assert jobs.launched.count("encode-0000") == 4
    assert jobs.launched.count("denoise-0002") == 7, "preemptions are not counted"
    assert [event["delay"] for event in events if event["event"] == "retrying"] == [0.01, 0.02, 0.04]


def test_failed_samples_are_passed_over_until_retried(jobs, config):
    generate_dataset(config(count=2))
    before = _ids(config())
    generate_dataset(config(count=3))
    (victim,) = _ids(config()) - before
    _delete_video(config(), victim)
    jobs.bad_ids = {victim}
    summary = generate_dataset(config(count=3))
    assert summary["exit_code"] == 2 and summary["phases"]["decode"]["failed"] == 1
    jobs.launched.clear()
    assert generate_dataset(config(count=3))["exit_code"] == 2 and jobs.launched == []
    jobs.bad_ids = set()
    assert retry_failed(config(count=3))["retried"] == 1
    assert run_status(config().output).exit_code == 0


@pytest.mark.parametrize("moved", [False, True])
def test_jobs_read_the_model_where_it_is_now(jobs, config, tmp_path, monkeypatch, moved):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EMBEDDED_MODEL, "old")
    Path("old", "vae", "note.txt").write_text("another model than the embedded one")
    run = plan_run(config(1, engine=FastVideoArgs(model_path="old"))).run
    if moved:
        Path("old").rename("new")
        generate_dataset(config(1, engine=FastVideoArgs(model_path="new")))
    else:
        retry_failed(config(1))
    assert jobs.models == {str(tmp_path / ("new" if moved else "old"))}
    assert [run.name for run in list_runs(run.output)] == [run.name] and run_status(config().output).exit_code == 0


def _ids(config):
    return {sample.id for sample in open_run(config.output).iter_samples()}


def _delete_video(config, id):
    run = open_run(config.output)
    run.objects.delete(video_path(run.keys[Phase.DECODE], id))


def test_the_parameter_form_describes_and_bounds():
    schema = generate_dataset.parameters.model_dump()
    sections = schema["definitions"]
    shown = sections["RunConfig"]["properties"]
    assert shown["jobs"]["minimum"] == 1 and sections["VideoConfig"]["properties"]["crf"]["maximum"] == 51
    sampling = sections["SamplingOverrides"]["properties"]
    assert sampling["flow_shift"]["exclusiveMinimum"] == sampling["guidance_scale_2"]["minimum"] == 0
    fields = [field for section in sections.values() for field in section.get("properties", {}).values()]
    assert all(field["description"] for field in fields)
    assert not any("anyOf" in field for field in fields), "what is optional may stay empty"
    assert sections["FastVideoArgs"]["properties"]["vae_tiling"]["title"] == "VAE tiling"
    assert sections["FastVideoArgs"]["properties"]["quantization"]["enum"] == ["fp8"]
    assert all(section["additionalProperties"] is False for section in sections.values())
    assert str(Path(fastvideo.__file__).parent) not in json.dumps(schema), (
        "no path of this host is a default of another"
    )


def test_values_that_are_not_defaults_say_it_all():
    config = RunConfig(prompts="p", output="o", jobs=3, video=VideoConfig(crf=30))
    assert config_values(config) == {"prompts": "p", "output": "o", "jobs": 3, "video": {"crf": 30}}
    assert parse_config(config_values(config)) == config
