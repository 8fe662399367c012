"""Process groups and collectives."""

from fastvideo.v1.distributed.parallel_state import ParallelGroup, get_sp_group, get_tp_group

__all__ = ["ParallelGroup", "get_sp_group", "get_tp_group"]
