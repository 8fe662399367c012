"""A shard's task with real jobs, in this process: how it gets past a sample at which they end."""

import logging
import signal
from functools import cache
from unittest.mock import patch

import pytest
import torch

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.failures import read_failures
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.dataset.waves.wave import read_wave
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.registry import build_pipeline
from fastvideo.v1.pipelines.stages import DenoisingStage
from fastvideo.v1.worker import stage_job
from fastvideo.v1.worker.failures import Cause, JobFailed, JobFailure
from fastvideo.v1.worker.gpu_worker import GPUWorker
from tasks import stage

LARGE = '{"prompt": "large", "height": 48}'
POISON, GOOD = '{"prompt": "poison"}', ['{"prompt": "a"}', '{"prompt": "b"}']


@cache
def _pipeline(phases):
    return build_pipeline(FastVideoArgs(device="cpu"), phases)


class Jobs:
    """Stands for ``launch``: a job of this process, to which ``error`` comes at some prompts; ``made`` says which each
    began, in order. The models stay loaded from job to job.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception, at: tuple[str, ...] = ("poison",)) -> None:
        self.error, self.at = error, at
        self.made: list[list[str]] = []
        seen = DenoisingStage._seen

        def begin(stage, batch, timestep):
            if batch.step_index == 0:
                self.made[-1].append(batch.prompt[0])
            if batch.prompt[0] in self.at:
                raise self.error
            return seen(stage, batch, timestep)

        monkeypatch.setattr(DenoisingStage, "_seen", begin)
        monkeypatch.setattr(GPUWorker, "load", lambda worker: setattr(worker, "_pipeline", _pipeline(worker.phases)))
        monkeypatch.setattr(stage, "launch", self._launch)
        monkeypatch.setattr(stage, "get_run_logger", lambda: logging.getLogger("a shard"))
        monkeypatch.setattr("tasks.retries._FIRST_DELAY", 0.0)

    def _launch(self, module, arguments, *, on_event, **_):
        self.made.append([])
        before = signal.getsignal(signal.SIGTERM)
        tell = patch.object(stage_job, "emit", lambda event, **values: on_event({"event": event, **values}))
        try:
            with tell, patch.object(stage_job, "die_with_parent"):
                stage_job.main(arguments)
        except Exception as error:
            causes = {torch.OutOfMemoryError: Cause.OUT_OF_MEMORY, TimeoutError: Cause.OUT_OF_TIME}
            cause = causes.get(type(error), Cause.INFRASTRUCTURE)
            raise JobFailed(JobFailure(cause, f"{type(error).__name__}: {error}")) from error
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run_shards(make_config):
    """Runs the encode and denoise shards of some prompts; returns the run, and whether the last ended well."""

    def run(*prompts):
        sampling = {"num_inference_steps": 1, "num_frames": 1, "height": 32, "width": 32}
        config = make_config(*prompts, engine={"device": "cpu"}, sampling=sampling)
        planned = plan_run(config)
        first, *_ = write_shards(planned.run, planned.scan, config, 0)
        with stage.stoppable_jobs():
            for shard in read_wave(planned.run, first.wave):
                if shard.phase is not Phase.DECODE:
                    is_done = _as_prefect_does(config, planned.run.name, shard)
        return planned.run, is_done

    return run


def _as_prefect_does(config, run, shard):
    for attempt in range(1, 9):
        with patch.object(stage, "task_run", type("TaskRun", (), {"id": None, "run_count": attempt})):
            try:
                stage._run_shard(config, run, shard)
                return True
            except JobFailed as failed:
                if failed.is_final:
                    return False
    raise AssertionError("it would be tried for ever")


@pytest.mark.parametrize("error", [KeyError("a stage's own"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_sample_at_which_jobs_end_is_taken_last_then_recorded(monkeypatch, run_shards, error):
    jobs = Jobs(monkeypatch, error)
    run, is_done = run_shards(POISON, *GOOD)
    assert is_done and scan(run)[Phase.DENOISE].missing == 0
    (failure,) = read_failures(run, Phase.DENOISE)
    assert failure["error"].startswith(f"{type(error).__name__}: {error}") and failure["attempts"] == 3
    assert "in begin" in failure["traceback"]
    if isinstance(error, torch.OutOfMemoryError):
        assert jobs.made[1:] == [["poison"], ["a", "b", "poison", "poison", "poison"]]
    else:
        assert jobs.made[1:] == [["poison"], ["a", "b", "poison"], ["poison"], []]
    with stage.stoppable_jobs():
        assert not stage._histories, "it ends with its wave"


def test_two_samples_at_which_jobs_end_block_no_other(monkeypatch, run_shards):
    Jobs(monkeypatch, RuntimeError("cuDNN error"), at=("poison", "a"))
    run, is_done = run_shards(POISON, *GOOD)
    assert is_done and (scan(run)[Phase.DENOISE].done, scan(run)[Phase.DENOISE].failed) == (1, 2)


def test_out_of_memory_for_a_size_of_its_own_ends_no_job(monkeypatch, run_shards):
    jobs = Jobs(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), at=("large",))
    run, is_done = run_shards(LARGE, *GOOD)
    assert is_done and jobs.made[1:] == [["large"] * 3 + ["a", "b"]]
    assert scan(run)[Phase.DENOISE].failed == 1


def test_a_job_whose_time_was_up_goes_on_uncounted_while_it_makes_something(monkeypatch, run_shards):
    jobs = Jobs(monkeypatch, TimeoutError("killed after one sample"), at=())
    commit = stage_job.StageJob._commit

    def commit_and_die(job, item, product):
        commit(job, item, product)
        if job.job.phase is Phase.DENOISE:
            raise jobs.error

    monkeypatch.setattr(stage_job.StageJob, "_commit", commit_and_die)
    run, is_done = run_shards(*(f'{{"prompt": "{number}"}}' for number in range(5)))
    assert is_done and scan(run)[Phase.DENOISE].done == 5 and len(jobs.made) > 1 + 4


@pytest.mark.parametrize(
    ("error", "at", "done"),
    [
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), ("poison",), 4),
        (RuntimeError("at every sample"), ("poison", "a", "b", "c", "d"), 0),
    ],
)
def test_what_is_the_machines_fault_is_held_against_no_sample(monkeypatch, run_shards, error, at, done):
    jobs = Jobs(monkeypatch, error, at)
    run, is_done = run_shards(POISON, *GOOD, '{"prompt": "c"}', '{"prompt": "d"}')
    assert not is_done and len(jobs.made) == 1 + 4, "three more tries"
    assert not read_failures(run, Phase.DENOISE)
    assert scan(run)[Phase.DENOISE].done == done, "the others are made first"
