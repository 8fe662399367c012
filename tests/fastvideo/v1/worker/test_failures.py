import json

import pytest

from fastvideo.v1.worker.failures import EXIT_PREEMPTED, Cause, classify


def write_error(path, message):
    path.write_text(json.dumps({"message": {"message": message, "extraInfo": {"py_callstack": "line\n" * 100}}}))
    return path


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("ValueError: height=17 must be a multiple of 16", Cause.BAD_INPUT),
        ("StoreMisconfigured: no bucket 'x'", Cause.BAD_INPUT),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", Cause.OUT_OF_MEMORY),
        ("RuntimeError: CUDA error: out of memory", Cause.OUT_OF_MEMORY),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", Cause.OUT_OF_MEMORY),
        ("Preempted: SIGTERM", Cause.PREEMPTED),
        ("SignalException: Process 7 got signal: 15", Cause.PREEMPTED),
        ("StoreUnavailable: connection refused", Cause.INFRASTRUCTURE),
        ("RuntimeError: NCCL timeout", Cause.INFRASTRUCTURE),
        ("RanksOutOfStep: ValueError: a fault (on rank 1; others were not through with it)", Cause.INFRASTRUCTURE),
    ],
)
def test_cause_follows_from_the_exception(tmp_path, message, cause):
    failure = classify(write_error(tmp_path / "error.json", message), 1)
    assert (failure.cause, failure.message) == (cause, message)
    assert len(failure.details.splitlines()) == 20


def test_without_error_file_the_output_is_the_evidence(tmp_path):
    failure = classify(tmp_path / "none.json", -9, ["first", "last"])
    assert failure.cause is Cause.INFRASTRUCTURE
    assert "SIGKILL" in failure.message and failure.details == "first\nlast"


def test_a_cut_error_file_counts_as_none(tmp_path):
    (tmp_path / "error.json").write_text('{"message": {"mess')
    assert classify(tmp_path / "error.json", 1).cause is Cause.INFRASTRUCTURE


def test_a_job_preempted_on_another_node_says_so_by_its_exit_code(tmp_path):
    assert classify(tmp_path / "none.json", EXIT_PREEMPTED).cause is Cause.PREEMPTED
