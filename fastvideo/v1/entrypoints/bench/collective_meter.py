"""What the collectives of a block of code send, and how long NCCL's kernels run."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The bytes that one of ``p`` ranks sends, of ``n`` bytes that it gives; as the cost model counts them.
_SENT: Mapping[str, Callable[[float, int], float]] = {
    "alltoall_base_": lambda n, p: n * (p - 1) / p,
    "allgather_": lambda n, p: n * (p - 1),
    "_allgather_base_": lambda n, p: n * (p - 1),
    "allreduce_": lambda n, p: 2 * n * (p - 1) / p,
    "broadcast_": lambda n, p: n,
    "send": lambda n, p: n,
}
_UNSENT = ("recv_", "monitored_barrier_", "barrier")
_GIVEN = {"alltoall_base_": 1, "_allgather_base_": 1, "allgather_": 1, "allreduce_": 0, "broadcast_": 0, "send": 0}
"""Which argument of each is what it gives."""


class CollectiveMeter(TorchDispatchMode):
    """Counts the collectives called under it: ``count`` of them, ``bytes`` that this rank sends, both by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self._take(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))

    def _take(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _UNSENT:
            return
        assert name in _SENT, f"collective {name} is not one of the framework's"
        (group,) = (arg for arg in args if isinstance(arg, torch.ScriptObject) and _is_group(arg))
        given = tree_leaves(args[_GIVEN[name]])
        num_bytes = sum(tensor.nbytes for tensor in given if isinstance(tensor, torch.Tensor))
        self.count[name] += 1
        self.bytes[name] += _SENT[name](num_bytes, dist.ProcessGroup.unbox(group).size())  # type: ignore[assignment]


def _is_group(argument: torch.ScriptObject) -> bool:
    return str(argument._type()).endswith(".ProcessGroup")


def nccl_seconds(call: Callable[[], object]) -> float:
    """Seconds that NCCL's kernels run on this GPU during ``call``, waiting for other ranks included."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() or [] if event.name.startswith("nccl")]
    return sum(event.device_time for event in events) / 1e6
