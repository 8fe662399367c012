"""A rank of a real torchrun that dies or leaves: how the job ends, and what is kept of it."""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.failures import Cause
from tests.fastvideo.v1.worker.faulty_stage_job import fault
from tests.fastvideo.v1.worker.parallel_jobs import (
    LAYOUTS,
    PROMPTS,
    TOLERANCE,
    Lost,
    error,
    latents,
    launch_faulty,
    make_config,
    run_alone,
    run_in_step,
    saved_steps,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
STEPS = 25
Jobs = dict[str, tuple[RunConfig, Lost]]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    make_config(folder, num_prompts=2)
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, encoded: Path) -> Jobs:
    """Launches at once, by what a rank does: what was to be made, and how it ended."""
    victim, steps = random.randrange(2), [random.randrange(2, 12) for _ in PROMPTS]
    asked = [fault(victim, prompt, "SIGTERM", step) for prompt, step in zip(PROMPTS, steps, strict=True)]
    started = {
        "dies": ("cfg", [fault(1, PROMPTS[0], "SIGKILL", step=3)]),  # the other is in a collective
        "hangs": ("data", [fault(1, PROMPTS[1], "hang", step=3)]),  # the other makes its sample
        "is asked to leave": ("data", asked),
    }
    with ThreadPoolExecutor(len(started)) as pool:
        futures = {}
        for name, (layout, faults) in started.items():
            config = make_config(tmp_path_factory.mktemp("job"), encoded, num_prompts=2, steps=STEPS)
            futures[name] = config, pool.submit(launch_faulty, config, LAYOUTS[layout], faults, checkpoint_every=0)
    return {name: (config, future.result()) for name, (config, future) in futures.items()}


def test_a_rank_that_dies_ends_the_job(jobs):
    _, lost = jobs["dies"]
    assert lost.failure.cause is Cause.INFRASTRUCTURE
    assert lost.seconds < 60


def test_a_rank_that_hangs_where_nobody_waits_for_it_ends_the_job(jobs):
    _, lost = jobs["hangs"]
    assert lost.failure.cause is Cause.INFRASTRUCTURE
    assert re.match(r"TimeoutError: nothing was done for \d+ s, and the longest step took ", lost.failure.message)
    assert "in _befall" in lost.failure.details, "where it hung"
    assert lost.seconds < 100


def test_sigterm_on_one_rank_saves_what_another_layout_goes_on_from(tmp_path, encoded, jobs):
    """torchrun asks the other rank to leave as well. From other layouts: see test_parallel_job.py."""
    config, lost = jobs["is asked to leave"]
    assert lost.failure.cause is Cause.PREEMPTED
    done = saved_steps(config)
    finished = 2 - len(done)  # ranks of data keep no step with each other: the other may have made its sample
    assert done and all(2 < step < STEPS for step in done)
    job = run_in_step(config, LAYOUTS["cfg"])
    assert job.errors == [None, None]
    assert len(job.named("step")) == 2 * ((2 - finished) * STEPS - sum(done)), "no step is made again"
    assert not saved_steps(config) and not scan(job.run)[Phase.DENOISE].missing
    undisturbed = run_alone(make_config(tmp_path, encoded, num_prompts=2, steps=STEPS), Phase.DENOISE)
    assert error(latents(job.run), latents(undisturbed)) < 10 * TOLERANCE, "over 25 steps"
