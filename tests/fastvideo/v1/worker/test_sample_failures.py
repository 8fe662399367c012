import pytest
import torch

from fastvideo.v1.dataset.objects.store_errors import StoreMisconfigured, StoreUnavailable
from fastvideo.v1.worker.failures import Preempted
from fastvideo.v1.worker.sample_failures import is_of_the_machine


@pytest.mark.parametrize(
    ("error", "is_the_machines"),
    [
        (StoreUnavailable("away"), True),
        (StoreMisconfigured("no bucket"), True),
        (Preempted("SIGTERM"), True),
        (torch.distributed.DistBackendError("NCCL: a host was lost"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (ValueError("the prompt 'busy or unavailable'"), False),
        (KeyError("a stage's own"), False),
    ],
    ids=str,
)
def test_which_failures_another_sample_would_have_met_as_well(error, is_the_machines):
    assert is_of_the_machine(error) is is_the_machines


@pytest.mark.parametrize(("free", "is_the_machines"), [(70, False), (40, True)])
def test_out_of_memory_that_others_hold_is_no_samples_fault(monkeypatch, free, is_the_machines):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5)
    assert is_of_the_machine(torch.OutOfMemoryError("CUDA out of memory")) is is_the_machines
