"""A run with step skipping: a key of its own, and a loop that is killed goes on bit for bit."""

import json
from pathlib import Path

import pytest

from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.sample import Sample
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.phase_jobs.denoise import DenoiseJob
from fastvideo.v1.worker.stage_job import engine_settings, run_stage_job


def make_config(folder: Path, **engine) -> RunConfig:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("a red circle moves left")
    return parse_config(
        {
            "prompts": str(folder / "prompts.txt"),
            "output": str(folder / "out"),
            "engine": {"device": "cpu"} | engine,
            "sampling": {"num_inference_steps": 8},
        }
    )


def run_phases(config: RunConfig, *phases: Phase) -> Run:
    for phase in phases:
        plan = plan_run(config)
        for shard in write_shards(plan.run, plan.scan, config, 1):
            if shard.phase is phase:
                worker = GPUWorker(engine_settings(plan.run, {"device": "cpu"}), [phase])
                run_stage_job(plan.run, phase, shard.path, worker, JobSettings(checkpoint_every=3))
    return plan.run


def write_rule(file: Path, slope: float = 3.0) -> str:
    file.write_text(json.dumps({"coefficients": [slope, 0.0], "first_steps": 1, "last_steps": 1}))
    return str(file)


def latents(run: Run) -> bytes:
    (path,) = (
        path
        for path in Path(run.output.uri("").removeprefix("file://")).rglob("*.safetensors")
        if f"denoise/{run.keys[Phase.DENOISE]}" in str(path)
    )
    return path.read_bytes()


def test_a_killed_loop_goes_on_bit_for_bit(tmp_path, monkeypatch):
    engine = {"step_skip_threshold": 0.3, "step_skip_rule": write_rule(tmp_path / "rule.json")}
    undisturbed = run_phases(make_config(tmp_path / "whole", **engine), Phase.ENCODE, Phase.DENOISE)
    config = make_config(tmp_path / "killed", **engine)
    run_phases(config, Phase.ENCODE)
    after_step = DenoiseJob._after_step

    def die_once_saved(job: DenoiseJob, item: Sample, batch: ForwardBatch) -> None:
        after_step(job, item, batch)
        for save in job._saves:
            save.result()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DenoiseJob, "_after_step", die_once_saved)
        run_phases(config, Phase.DENOISE)
    assert list((tmp_path / "killed").rglob("*.step.safetensors"))
    run = run_phases(config, Phase.DENOISE)
    assert run.keys == undisturbed.keys
    assert latents(run) == latents(undisturbed)


def test_exact_and_skipping_runs_share_encodings_and_no_latents(tmp_path):
    rules = [write_rule(tmp_path / f"{slope}.json", slope) for slope in (3.0, 4.0)]
    copy = write_rule(tmp_path / "copy.json", 3.0)
    engines = [
        {},
        {"step_skip_threshold": 0.0, "step_skip_rule": rules[0]},
        {"step_skip_threshold": 0.3, "step_skip_rule": rules[0]},
        {"step_skip_threshold": 0.3, "step_skip_rule": rules[1]},
        {"step_skip_threshold": 0.3, "step_skip_rule": copy},
    ]
    keys = [plan_run(make_config(tmp_path / "data", **engine)).run.keys for engine in engines]
    assert len({key[Phase.ENCODE] for key in keys}) == 1
    denoise = [key[Phase.DENOISE] for key in keys]
    assert denoise[2] == denoise[4] and len(set(denoise)) == 4
    with pytest.raises(ValueError, match="no coefficients are published for this checkpoint"):
        plan_run(make_config(tmp_path / "data", step_skip_threshold=0.3))
