"""Samplers: timesteps and steps of the denoising loop."""

from fastvideo.v1.models.schedulers.base import Scheduler, SchedulerState
from fastvideo.v1.models.schedulers.dmd import DMDScheduler
from fastvideo.v1.models.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler
from fastvideo.v1.models.schedulers.unipc import UniPCMultistepScheduler

__all__ = ["DMDScheduler", "FlowMatchEulerDiscreteScheduler", "Scheduler", "SchedulerState", "UniPCMultistepScheduler"]
