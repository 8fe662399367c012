"""The stage job on two processes: the same objects as on one, in step, whatever goes wrong on a rank."""

import random
from dataclasses import asdict
from pathlib import Path

import pytest

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.failures import read_failures
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.runs.phase_layouts import with_layout
from fastvideo.v1.dataset.waves.shards import layout_of, read_shard, write_shards
from fastvideo.v1.distributed.choice import START_SECONDS, LayoutChoice, Tail
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.gpu_worker import GPUWorker
from tests.fastvideo.v1.worker.faulty_stage_job import fault
from tests.fastvideo.v1.worker.parallel_jobs import (
    LAYOUTS,
    PROMPTS,
    TOLERANCE,
    error,
    latents,
    make_config,
    run_alone,
    run_in_step,
    run_shard,
    saved_steps,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]  # a group shared with other tests


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose texts are encoded."""
    folder = tmp_path_factory.mktemp("encoded")
    make_config(folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, encoded: Path) -> dict[str, bytes]:
    """Latents of one process."""
    return latents(run_alone(make_config(tmp_path_factory.mktemp("alone"), encoded), Phase.DENOISE))


@pytest.mark.parametrize("layout", ["data", "ring"])
def test_two_processes_make_the_latents_of_one(tmp_path, encoded, alone, layout):
    job = run_in_step(make_config(tmp_path, encoded), LAYOUTS[layout])
    assert job.errors == [None, None]
    made = latents(job.run)
    if layout == "data":
        assert made == alone, "equal to the byte"
    assert error(made, alone) < TOLERANCE
    committed = sorted(event["committed"] for event in job.named("done"))
    assert committed == ([1, 2] if layout == "data" else [0, 3]), "the first rank of a group commits"
    assert len(job.named("committed")) == 3 and not scan(job.run)[Phase.DENOISE].missing


def test_the_last_sample_is_spread_over_the_ranks_that_others_left_idle(tmp_path, encoded, alone):
    config = make_config(tmp_path, encoded)
    run, sooner = plan_run(config).run, Tail(layout=ParallelLayout(cfg=2), saved=START_SECONDS + 1, reason="a test")
    choice = LayoutChoice(layout=ParallelLayout(data=2), reason="a test", tails={1: sooner})
    committed: list[list[str]] = []
    for shard in write_shards(run, scan(run), config, 1, dict.fromkeys(Phase, choice)):
        if shard.phase is Phase.DENOISE:
            engine = with_layout(config.engine, layout_of(read_shard(run, shard.path)))
            job = run_shard(run, shard.phase, shard.path, asdict(engine))
            assert job.errors == [None, None]
            committed.append([event["id"] for event in job.named("committed")])
    side_by_side, spread = committed
    assert (len(side_by_side), len(spread)) == (2, 1) and not scan(run)[Phase.DENOISE].missing
    made = latents(run)
    assert all(made[id] == alone[id] for id in side_by_side), "equal to the byte in the layout of all"
    assert error(made, alone) < TOLERANCE, "elsewhere within tolerance"
    ledger = read_ledger(run, Phase.DENOISE)
    made_on = dict(zip(ledger["id"].to_pylist(), ledger["device"].to_pylist(), strict=True))
    assert made_on == dict.fromkeys(side_by_side, "cpu (SDPA)") | dict.fromkeys(spread, "cpu (SDPA, cfg=2)")


def test_videos_are_written_by_one_rank(tmp_path, encoded):
    config = make_config(tmp_path, encoded)
    run_alone(config, Phase.DENOISE)
    job = run_in_step(config, LAYOUTS["cfg"], phase=Phase.DECODE)
    assert job.errors == [None, None]
    assert sorted(event["committed"] for event in job.named("done")) == [0, 3]
    assert not scan(job.run)[Phase.DECODE].missing


def test_a_layout_of_another_number_of_processes_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    worker = GPUWorker(FastVideoArgs(device="cpu", num_gpus=4, sp_size=2, ring_size=2), [Phase.DENOISE])
    with pytest.raises(ValueError, match=r"data=2 x cfg=1 x ring=2 .* as there are, 2; nearest: ") as error:
        worker.init_device()
    assert "\n" not in str(error.value)


def test_what_fails_on_one_rank_is_tried_again_by_all(tmp_path, encoded, alone):
    faults = [
        fault(0, PROMPTS[0], "ValueError"),
        fault(1, PROMPTS[1], "FloatingPointError", times=9),
        fault(1, PROMPTS[2], "FloatingPointError"),
    ]
    job = run_in_step(make_config(tmp_path, encoded), LAYOUTS["cfg"], faults, tries=2)
    assert job.errors == [None, None]
    (failed,) = read_failures(job.run, Phase.DENOISE)
    assert (failed["error"], failed["attempts"]) == ("FloatingPointError: a fault", 2)
    assert "faulty_stage_job" in failed["traceback"], "the traceback of the rank where it was"
    assert [event["id"] for event in job.named("failed")] == [failed["id"]]
    assert error(latents(job.run), {id: alone[id] for id in alone if id != failed["id"]}) < TOLERANCE
    for rank in (0, 1):
        assert len([event for event in job.named("step") if event["rank"] == rank]) == 3 * 2 * 3


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RuntimeError", "RuntimeError: a fault"),  # not on the sample's account
        ("ValueError", "RanksOutOfStep: ValueError: a fault (on rank 1; others"),  # in the middle of a call
    ],
)
def test_a_rank_that_raises_while_the_other_waits_in_a_collective_ends_the_job(tmp_path, encoded, error, message):
    faults = [fault(1, PROMPTS[0], error, step=1)]
    job = run_in_step(make_config(tmp_path, encoded), LAYOUTS["cfg"], faults, failure_seconds=2.0)
    of_the_other, raised = job.errors
    assert raised.startswith(message) and of_the_other is not None
    if error == "ValueError":
        assert "faulty_stage_job" in raised, "the traceback of the rank where it was"
    assert [event["rank"] for event in job.named("step") if event["step"] == 1] == [0, 1], "it is not tried again"
    assert not read_failures(job.run, Phase.DENOISE) and scan(job.run)[Phase.DENOISE].missing == 3
    assert len(job.named("blamed")) == (error == "ValueError"), "a rank that is alone in it may have lost another"


def test_a_sample_that_ends_the_job_on_all_ranks_is_told_of(tmp_path, encoded):
    faults = [fault(rank, PROMPTS[0], "RuntimeError") for rank in (0, 1)]
    job = run_in_step(make_config(tmp_path, encoded), LAYOUTS["cfg"], faults)
    assert job.errors == ["RuntimeError: a fault"] * 2
    assert len({event["id"] for event in job.named("blamed")}) == 1


@pytest.fixture(scope="module")
def long_alone(tmp_path_factory: pytest.TempPathFactory, encoded: Path) -> dict[str, bytes]:
    """Latents of one process after many steps."""
    config = make_config(tmp_path_factory.mktemp("long"), encoded, num_prompts=2, steps=25)
    return latents(run_alone(config, Phase.DENOISE))


@pytest.mark.parametrize(("left", "resumed"), [("ring", "data"), ("cfg", None)], ids=str)
def test_sigterm_on_one_rank_saves_what_another_layout_goes_on_from(tmp_path, encoded, long_alone, left, resumed):
    """From data to cfg, under a real torchrun: see test_lost_ranks.py."""
    config, step = make_config(tmp_path, encoded, num_prompts=2, steps=25), random.randrange(2, 20)
    job = run_in_step(
        config, LAYOUTS[left], [fault(random.randrange(2), PROMPTS[0], "SIGTERM", step)], checkpoint_every=0
    )
    assert [str(error).split()[0] for error in job.errors] == ["Preempted:", "Preempted:"]
    assert saved_steps(config) == [step + 1], "the step that was under way is made"
    if resumed is None:
        run = run_alone(config, Phase.DENOISE)
    else:
        job = run_in_step(config, LAYOUTS[resumed])
        assert job.errors == [None, None]
        assert len(job.named("step")) == 2 * 25 - (step + 1), "no step is made again"
        run = job.run
    assert not saved_steps(config)
    assert error(latents(run), long_alone) < 10 * TOLERANCE, "over 25 steps"
