"""Samplers: timesteps and steps of the denoising loop.

Only what denoises pays for diffusers, which takes seconds to import: the samplers' names are resolved when asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastvideo.v1.models.schedulers.base import Scheduler, SchedulerState

if TYPE_CHECKING:
    from fastvideo.v1.models.schedulers.dmd import DMDScheduler
    from fastvideo.v1.models.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler
    from fastvideo.v1.models.schedulers.unipc import UniPCMultistepScheduler

__all__ = ["DMDScheduler", "FlowMatchEulerDiscreteScheduler", "Scheduler", "SchedulerState", "UniPCMultistepScheduler"]

_SAMPLERS = {
    "DMDScheduler": "dmd",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler",
    "UniPCMultistepScheduler": "unipc",
}


def __getattr__(name: str) -> Any:
    if name not in _SAMPLERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_SAMPLERS[name]}"), name)
