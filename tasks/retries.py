"""Which failures are worth another try, and when."""

from functools import partial
from typing import Any

from prefect import task

from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.worker.failures import Cause, JobFailed

RETRIES = 3
_FIRST_DELAY = 10.0


def delay_before_retry(cause: Cause, attempt: int) -> float | None:
    """Seconds to wait after the failed ``attempt`` (from 1), or None: no more.

    Preemption is nobody's fault and is not counted here, nor is a job whose time was up though it had made something
    (tasks/stage.py). A job that ran out of memory gets a second chance, for another process may have held it; a bad
    input stays bad.
    """
    if cause is Cause.BAD_INPUT or attempt > RETRIES:
        return None
    if cause is Cause.OUT_OF_MEMORY:
        return _FIRST_DELAY if attempt == 1 else None
    return 0.0 if cause is Cause.PREEMPTED else _FIRST_DELAY * 2 ** (attempt - 1)


def should_retry_shard(task: Any, task_run: Any, state: Any) -> bool:
    """Prefect's ``retry_condition_fn`` of the stage tasks."""
    error = state.data
    if not isinstance(error, JobFailed) or error.is_final:
        return False
    return delay_before_retry(error.failure.cause, task_run.run_count) is not None


def should_retry_storage(task: Any, task_run: Any, state: Any) -> bool:
    """Prefect's ``retry_condition_fn`` of tasks that only read and write storage."""
    return isinstance(state.data, StoreUnavailable)


stage_task: Any = partial(task, retries=RETRIES, retry_condition_fn=should_retry_shard)
"""``@task`` for one that runs a shard: tried again by the cause of its failure, see :func:`delay_before_retry`."""

storage_task: Any = partial(
    task, retries=RETRIES, retry_delay_seconds=[2.0, 10.0, 30.0], retry_condition_fn=should_retry_storage
)
"""``@task`` for one that only reads and writes storage: tried again while the store is unavailable."""
