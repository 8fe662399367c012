"""The stage job against a real store: what it commits, what it survives, what it leaves when it must go."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.layout import latents_path, object_path, step_path
from fastvideo.v1.dataset.objects.state_file import unpack_state
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.dataset.objects.video import VideoWriter, probe
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.failures import read_failures
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.registry import build_pipeline
from fastvideo.v1.pipelines.stages import DecodingStage, DenoisingStage
from fastvideo.v1.worker import stage_job
from fastvideo.v1.worker.failures import EXIT_PREEMPTED
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.stage_job import engine_settings, run_stage_job
from tests.fastvideo.v1.worker.faulty_stage_job import fault

PROMPTS = ["a red circle moves left", "white star grows, navy background", "a cyan ball rises on gray"]


def make_config(folder: Path, num_prompts: int = 3, **sampling) -> RunConfig:
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[:num_prompts]))
    return parse_config(
        {
            "prompts": str(prompts),
            "output": str(folder / "out"),
            "engine": {"device": "cpu"},
            "sampling": {"num_inference_steps": 3, "num_frames": 5} | sampling,
        }
    )


def run_phase(config: RunConfig, phase: Phase, **settings) -> Run:
    """One phase of one wave in this process, as torchrun would run it."""
    plan = plan_run(config)
    for shard in write_shards(plan.run, plan.scan, config, 1):
        if shard.phase is phase:
            worker = GPUWorker(FastVideoArgs(device="cpu"), [phase])
            run_stage_job(plan.run, phase, shard.path, worker, JobSettings(**settings))
    return plan.run


def test_a_job_reads_the_model_where_it_lies_now(tmp_path):
    model = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))
    config = make_config(tmp_path, 1)
    plan = plan_run(replace(config, engine=FastVideoArgs(device="cpu", model_path=str(model))))
    (shard,) = (s for s in write_shards(plan.run, plan.scan, config, 1) if s.phase is Phase.ENCODE)
    moved = model.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"model' is no directory here"):
        build_pipeline(engine_settings(plan.run, {"device": "cpu"}), ())
    worker = GPUWorker(engine_settings(plan.run, {"device": "cpu", "model_path": str(moved)}), [Phase.ENCODE])
    run_stage_job(plan.run, Phase.ENCODE, shard.path, worker, JobSettings())
    assert scan(plan.run)[Phase.ENCODE].missing == 0


def run_all(config: RunConfig, **settings) -> Run:
    for phase in Phase:
        run = run_phase(config, phase, **settings)
    return run


def start_job(config: RunConfig, phase: Phase, faults: Sequence[Any] = (), **settings) -> tuple[Run, subprocess.Popen]:
    """One phase of one wave in a process of its own, which ``faults`` befall (faulty_stage_job.py)."""
    plan = plan_run(config)
    (shard,) = (s for s in write_shards(plan.run, plan.scan, config, 1) if s.phase is phase)
    module = "tests.fastvideo.v1.worker.faulty_stage_job" if faults else "fastvideo.v1.worker.stage_job"
    command = [sys.executable, "-m", module, "--output", config.output, "--run", plan.run.name]
    command += ["--phase", phase, "--shard", shard.path, "--settings", json.dumps(settings)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "FAULTS": json.dumps(faults)}
    return plan.run, subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def objects(run: Run, phase: Phase) -> dict[str, bytes]:
    table = read_ledger(run, phase)
    return {id: run.objects.read(object_path(phase, run.keys[phase], id)) for id in table["id"].to_pylist()}


@pytest.fixture(autouse=True)
def restore_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_three_phases_make_every_object_once(tmp_path, capsys):
    config = make_config(tmp_path)
    run = run_all(config)
    state = scan(run)
    assert [(s.total, s.done, s.failed) for s in state.values()] == [(4, 4, 0), (3, 3, 0), (3, 3, 0)]
    assert all(not len(s.unindexed) for s in state.values())
    for id in read_ledger(run, Phase.DECODE)["id"].to_pylist():
        info = probe(run.objects.uri(object_path(Phase.DECODE, run.keys[Phase.DECODE], id)))
        assert (info.width, info.height, info.num_frames, info.fps) == (64, 64, 5, 8)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["committed"] for e in events if e["event"] == "done"] == [4, 3, 3]
    ledger = read_ledger(run, Phase.DECODE).to_pylist()
    assert all(row["seconds"] > 0 and row["device"] == "cpu" and row["metrics"]["contrast"] > 0 for row in ledger)


def test_embeddings_are_equal_to_the_byte_however_many_are_encoded_together(tmp_path):
    made = []
    for size in (1, 2, 256):
        folder = tmp_path / str(size)
        folder.mkdir()
        made.append(objects(run_phase(make_config(folder), Phase.ENCODE, text_batch_size=size), Phase.ENCODE))
    assert len(made[0]) == 4 and made[0] == made[1] == made[2]


def test_latents_are_equal_to_the_byte_whatever_the_shard(tmp_path):
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    whole = run_all(make_config(tmp_path / "whole"))
    config = make_config(tmp_path / "pieces")
    run_phase(config, Phase.ENCODE)
    plan = plan_run(config)
    for shard in write_shards(plan.run, plan.scan, replace(config, shard_size=1), 1):
        if shard.phase is Phase.DENOISE:
            worker = GPUWorker(FastVideoArgs(device="cpu"), [Phase.DENOISE])
            run_stage_job(plan.run, Phase.DENOISE, shard.path, worker, JobSettings())
    assert objects(plan.run, Phase.DENOISE) == objects(whole, Phase.DENOISE)


def test_a_sample_whose_latents_are_nan_fails_alone_after_its_tries(tmp_path, monkeypatch, capsys):
    config = make_config(tmp_path)
    run_phase(config, Phase.ENCODE)
    calls = []
    seen = DenoisingStage._seen

    def poisoned(self, batch, timestep):
        latents, timestep = seen(self, batch, timestep)
        if batch.prompt[0] == PROMPTS[1]:
            calls.append(batch.step_index)
            latents = latents * float("nan")
        return latents, timestep

    monkeypatch.setattr(DenoisingStage, "_seen", poisoned)
    run = run_phase(config, Phase.DENOISE, tries=2)
    (failure,) = read_failures(run, Phase.DENOISE)
    assert "FloatingPointError: denoising gave NaN" in failure["error"] and failure["attempts"] == 2
    assert len(calls) == 2 * 3, "two tries of three steps each"
    state = scan(run)[Phase.DENOISE]
    assert (state.done, state.failed) == (2, 1)


def test_a_sample_that_another_process_makes_between_two_tries_is_no_failure(tmp_path, monkeypatch, capsys):
    config = make_config(tmp_path, num_prompts=1)
    run = run_phase(config, Phase.ENCODE)
    (id,) = next(run.iter_batches())["id"].to_pylist()

    def fails(self, batch, timestep):
        run.objects.create(latents_path(run.keys[Phase.DENOISE], id), b"made elsewhere")
        raise ValueError("once")

    monkeypatch.setattr(DenoisingStage, "_seen", fails)
    run_phase(config, Phase.DENOISE)
    assert not read_failures(run, Phase.DENOISE)
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (done["skipped"], done["failed"]) == (1, 0)


def test_an_event_is_one_write_so_that_threads_cannot_part_it(monkeypatch):
    written = []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=written.append, flush=lambda: None))
    stage_job.emit("committed", id="a")
    assert written == ['{"event": "committed", "id": "a"}\n']


@pytest.mark.parametrize("passes", [True, False])
def test_a_state_that_led_to_nan_is_not_gone_on_from(tmp_path, monkeypatch, passes):
    config = make_config(tmp_path)
    run_phase(config, Phase.ENCODE)
    steps = []
    seen = DenoisingStage._seen

    def poisoned(self, batch, timestep):
        latents, timestep = seen(self, batch, timestep)
        if batch.prompt[0] == PROMPTS[1]:
            steps.append(batch.step_index)
            latents = latents * float("nan") if len(steps) <= 3 or not passes else latents
        return latents, timestep

    monkeypatch.setattr(DenoisingStage, "_seen", poisoned)
    run = run_phase(config, Phase.DENOISE, tries=2, checkpoint_every=1)
    assert steps == [0, 1, 2, 0, 1, 2]
    assert scan(run)[Phase.DENOISE].failed == (0 if passes else 1)
    assert not list((tmp_path / "out").rglob("*.step.safetensors"))


def test_no_video_stays_on_the_local_disk(tmp_path, monkeypatch):
    """Not even one that was written before another rank failed."""
    config = make_config(tmp_path, num_prompts=1)
    run_phase(config, Phase.ENCODE)
    run_phase(config, Phase.DENOISE)
    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(local))
    agreed = [[stage_job.SampleFailure("ValueError: on another rank", "")], [None]]
    monkeypatch.setattr(stage_job.StageJob, "_agree", lambda self, items, failure: agreed.pop(0))
    run = run_phase(config, Phase.DECODE)
    assert scan(run)[Phase.DECODE].done == 1 and not agreed
    assert not list(local.rglob("*.mp4"))


class Outage:
    """A store that does not take what goes to paths with ``part`` in them, so many ``times``."""

    def __init__(self, monkeypatch, method: str, part: str, times: int) -> None:
        self.paths, self.left, self.threads = [], times, set()
        original = getattr(Store, method)

        def refuse(store, path, *content):
            if part in path:
                self.paths.append(path)
                self.threads.add(threading.current_thread())
                self.left -= 1
                if self.left >= 0:
                    raise StoreUnavailable("away")
            return original(store, path, *content)

        monkeypatch.setattr(Store, method, refuse)


@pytest.mark.parametrize("times", [1, 2])
def test_what_the_store_did_not_take_is_handed_over_once_more(tmp_path, monkeypatch, times):
    config = make_config(tmp_path)
    run = run_phase(config, Phase.ENCODE)
    first, *_ = (sample.id for sample in run.iter_samples())
    outage = Outage(monkeypatch, "create", f"{first}.safetensors", times)
    if times == 1:
        run_phase(config, Phase.DENOISE)
        assert scan(run)[Phase.DENOISE].missing == 0
    else:
        with pytest.raises(StoreUnavailable):
            run_phase(config, Phase.DENOISE)
        assert scan(run)[Phase.DENOISE].missing_ids.to_pylist() == [first], "what was made after it is stored"
    assert len(outage.paths) == 2


def test_a_save_that_the_store_does_not_take_costs_no_sample_and_no_time_of_the_device(tmp_path, monkeypatch):
    config = make_config(tmp_path, num_prompts=1)
    run_phase(config, Phase.ENCODE)
    outage = Outage(monkeypatch, "overwrite", "step", times=9)
    run = run_phase(config, Phase.DENOISE, checkpoint_every=1)
    assert scan(run)[Phase.DENOISE].missing == 0 and outage.paths
    assert threading.main_thread() not in outage.threads


def test_a_video_is_finished_while_the_next_is_decoded(tmp_path, monkeypatch):
    config = make_config(tmp_path, num_prompts=2)
    run_phase(config, Phase.ENCODE)
    run_phase(config, Phase.DENOISE)
    decodes, overlapped, second_began = [], [], threading.Event()
    forward, finish = DecodingStage.forward, VideoWriter.__exit__

    def begin(stage, batch, fastvideo_args):
        decodes.append(batch.prompt[0])
        if len(decodes) == 2:
            second_began.set()
        return forward(stage, batch, fastvideo_args)

    def finish_late(writer, *error):
        overlapped.append(second_began.wait(20))
        finish(writer, *error)

    monkeypatch.setattr(DecodingStage, "forward", begin)
    monkeypatch.setattr(VideoWriter, "__exit__", finish_late)
    run = run_phase(config, Phase.DECODE)
    assert overlapped == [True, True] and scan(run)[Phase.DECODE].done == 2


def test_a_video_that_cannot_be_finished_is_held_against_its_sample(tmp_path, monkeypatch, capsys):
    config = make_config(tmp_path, num_prompts=1)
    run_phase(config, Phase.ENCODE)
    run_phase(config, Phase.DENOISE)

    def fail(writer, *error):
        raise ValueError("the encoder's own")

    monkeypatch.setattr(VideoWriter, "__exit__", fail)
    with pytest.raises(RuntimeError, match="ValueError: the encoder's own"):
        run_phase(config, Phase.DECODE)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["error"] for event in told if event["event"] == "blamed"] == ["ValueError: the encoder's own"]


def test_a_damaged_latent_is_put_aside_and_made_again(tmp_path, capsys):
    config = make_config(tmp_path)
    run_phase(config, Phase.ENCODE)
    run = run_phase(config, Phase.DENOISE)
    before = objects(run, Phase.DENOISE)
    victim = sorted(before)[0]
    path = Path(run.objects.uri(latents_path(run.keys[Phase.DENOISE], victim)))
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    run_phase(config, Phase.DECODE)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["id"] for event in events if event["event"] == "damaged"] == [victim]
    assert not path.exists() and scan(run)[Phase.DENOISE].missing == 1 and scan(run)[Phase.DECODE].done == 2
    assert [p.read_bytes() for p in (tmp_path / "out/damaged").rglob(f"{victim}*")] == [bytes(data)]
    run_all(config)
    assert objects(run, Phase.DENOISE) == before and scan(run)[Phase.DECODE].done == 3


def test_sigterm_saves_the_last_step_and_the_next_job_goes_on_there(tmp_path):
    steps, step = 25, random.randrange(1, 20)
    config = make_config(tmp_path, num_prompts=1, num_inference_steps=steps)
    run_phase(config, Phase.ENCODE)
    run, job = start_job(config, Phase.DENOISE, [fault(0, PROMPTS[0], "SIGTERM", step)], checkpoint_every=0)
    job.communicate(timeout=120)
    assert job.returncode == EXIT_PREEMPTED
    (saved,) = (tmp_path / "out").rglob("*.step.safetensors")
    _, scalars = unpack_state(saved.read_bytes(), "step")
    assert scalars["step_index"] == step + 1, "the step that was under way is made"
    run_phase(config, Phase.DENOISE)
    assert not saved.exists()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    other = make_config(undisturbed, num_prompts=1, num_inference_steps=steps)
    run_phase(other, Phase.ENCODE)
    assert objects(run_phase(other, Phase.DENOISE), Phase.DENOISE) == objects(run, Phase.DENOISE)


@pytest.mark.parametrize("phase", list(Phase))
def test_kill_9_loses_at_most_what_was_in_flight(tmp_path, phase):
    config = make_config(tmp_path, num_inference_steps=8)
    for earlier in list(Phase)[: list(Phase).index(phase)]:
        run_phase(config, earlier)
    run, job = start_job(config, phase, text_batch_size=1)
    while json.loads(job.stdout.readline())["event"] != "committed":
        continue
    job.kill()
    job.wait()
    committed = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "out" / phase).rglob("*") if p.suffix in {".mp4", ".safetensors"}
    }
    assert committed
    run_all(config)
    assert all(state.missing == 0 for state in scan(run).values())
    assert {p: p.stat().st_mtime_ns for p in committed} == committed, "nothing committed is written again"


def test_a_step_checkpoint_is_written_every_n_steps_and_removed_at_the_end(tmp_path, monkeypatch):
    config = make_config(tmp_path, num_inference_steps=7)
    run_phase(config, Phase.ENCODE)
    written = []
    overwrite = Store.overwrite
    monkeypatch.setattr(
        Store, "overwrite", lambda self, path, data: (written.append(path), overwrite(self, path, data))
    )
    run = run_phase(config, Phase.DENOISE, checkpoint_every=3)
    ids = read_ledger(run, Phase.DENOISE)["id"].to_pylist()
    assert sorted(p for p in written if "step" in p) == sorted(
        2 * [step_path(run.keys[Phase.DENOISE], id) for id in ids]
    )
    assert not list((tmp_path / "out").rglob("*.step.safetensors"))


def test_a_missing_run_is_one_line(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    run = plan_run(config).run
    monkeypatch.setattr(stage_job, "die_with_parent", lambda: None)
    with pytest.raises(ValueError, match=f"run 'nowhere' is not in {config.output}.*{run.name}") as raised:
        stage_job.main(["--output", config.output, "--phase", "encode", "--run", "nowhere", "--shard", "x"])
    assert "\n" not in str(raised.value)
