from types import SimpleNamespace

import pytest

from fastvideo.v1.dataset.objects.store_errors import StoreMisconfigured, StoreUnavailable
from fastvideo.v1.worker.failures import Cause, JobFailed, JobFailure
from tasks.retries import delay_before_retry, should_retry_shard, should_retry_storage


@pytest.mark.parametrize(
    ("cause", "delays"),
    [
        (Cause.BAD_INPUT, [None]),
        (Cause.OUT_OF_MEMORY, [10, None]),
        (Cause.PREEMPTED, [0, 0, 0, None]),
        (Cause.OUT_OF_TIME, [10, 20, 40, None]),
        (Cause.INFRASTRUCTURE, [10, 20, 40, None]),
    ],
)
def test_each_cause_has_its_rule(cause, delays):
    assert [delay_before_retry(cause, attempt) for attempt in range(1, len(delays) + 1)] == delays


def decide(rule, error, attempt=1):
    return rule(None, SimpleNamespace(run_count=attempt), SimpleNamespace(data=error))


def test_a_shard_is_retried_for_its_jobs_sake_only():
    lost = JobFailed(JobFailure(Cause.INFRASTRUCTURE, "lost"))
    assert decide(should_retry_shard, lost)
    assert not decide(should_retry_shard, lost, attempt=4)
    assert not decide(should_retry_shard, TypeError("a mistake of ours"))
    lost.is_final = True
    assert not decide(should_retry_shard, lost)


def test_storage_is_retried_when_it_may_come_back():
    assert decide(should_retry_storage, StoreUnavailable("gone"))
    assert not decide(should_retry_storage, StoreMisconfigured("no bucket"))
    assert not decide(should_retry_storage, ValueError("bad prompts"))
