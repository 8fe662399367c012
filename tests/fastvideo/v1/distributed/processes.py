"""Runs a function in several gloo processes; starting them takes seconds, so one start serves many checks."""

import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=20)


def run_processes(num_processes: int, body: Callable[..., None], *arguments: object) -> None:
    """Calls ``body(rank, *arguments)`` in each process, and raises what the first to fail raised."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(_enter, (num_processes, port, body, arguments), nprocs=num_processes)


def _enter(rank: int, num_processes: int, port: int, body: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=num_processes, timeout=TIMEOUT)
    try:
        body(rank, *arguments)
    finally:
        dist.destroy_process_group()
