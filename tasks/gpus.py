"""The GPUs of a job: counted by a Prefect limit across hosts where one is named, and locked by name on this host."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.concurrency.sync import concurrency

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.worker.device_lock import NO_DEVICES, HeldDevices, hold_devices, visible_devices
from fastvideo.v1.worker.failures import Cause, JobFailed, JobFailure
from fastvideo.v1.worker.torchrun import node_settings

_ASK_SECONDS = 10.0
_LEASE_SECONDS = 60.0  # after this at the latest, what a killed job held is free again


@contextmanager
def hold_gpus(config: RunConfig, count: int, stop: threading.Event) -> Iterator[HeldDevices]:
    """Has ``count`` GPUs for the block; a killed process gives them back, to the kernel at once and to Prefect soon.

    A job of several nodes gets its GPUs from the cluster, and one on a CPU needs none. Raises ``JobFailed``, and
    ``ValueError`` for nodes that are not told of in full.
    """
    is_elsewhere = config.engine.device == "cpu" or node_settings(os.environ).count > 1
    devices = () if is_elsewhere else visible_devices(os.environ)
    with ExitStack() as stack:
        held = stack.enter_context(hold_devices(devices, count, stop)) if devices else NO_DEVICES
        if config.gpu_limit is not None:  # the GPUs first: whoever waits for this host's takes no slot from another
            _take_slots(stack, config.gpu_limit, count, stop)
        yield held


def _take_slots(stack: ExitStack, limit: str, count: int, stop: threading.Event) -> None:
    """Asks again and again, so that a request to stop is heard."""
    while not stop.is_set():
        try:
            stack.enter_context(
                concurrency(
                    limit,
                    occupy=count,
                    timeout_seconds=_ASK_SECONDS,
                    lease_duration=_LEASE_SECONDS,
                    strict=True,
                    raise_on_lease_renewal_failure=False,
                )
            )
            return
        except TimeoutError:
            continue
    raise JobFailed(JobFailure(Cause.PREEMPTED, f"stopped on request while waiting for {count} of limit {limit!r}"))
