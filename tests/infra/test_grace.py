"""However a job is run, it has its whole grace before what runs it is killed."""

import inspect
import re
from pathlib import Path

import pytest
from prefect.runner._process_manager import ProcessManager

from fastvideo.v1.worker.torchrun import GRACE_SECONDS
from flows.stack import Stack, _workers

INFRA = Path(__file__).parents[2] / "infra"
STEP_SECONDS = 19.3  # of Wan 14B at 720p on one H100 (infra/benchmarks)
GRANTED = {
    "compose.yaml": (r"stop_grace_period: (\d+)m", 60),
    "kubernetes/nodes.yaml": (r"terminationGracePeriodSeconds: (\d+)", 1),
    "kubernetes/dataset-job.yaml": (r"terminationGracePeriodSeconds: (\d+)", 1),
    "kubernetes/base-job-template.json": (r'"termination_grace_seconds": \{[^}]*"default": (\d+)', 1),
    "slurm/dataset.sbatch": (r"--signal=B:TERM@(\d+)", 1),
}


def test_a_step_ends_before_prefect_kills_a_cancelled_flow_and_the_stack_waits_for_that() -> None:
    prefects = inspect.signature(ProcessManager.kill).parameters["grace_seconds"].default
    assert prefects - 5 > STEP_SECONDS
    (worker,) = _workers(Stack(home=Path(), port=1, s3_port=2, workers=1))
    assert worker.grace > prefects + 5


@pytest.mark.parametrize("name", GRANTED)
def test_a_job_has_time_for_a_step_and_to_end(name: str) -> None:
    pattern, unit = GRANTED[name]
    (granted,) = re.findall(pattern, (INFRA / name).read_text())
    assert 2 * STEP_SECONDS < GRACE_SECONDS <= int(granted) * unit - 20
