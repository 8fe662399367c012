"""Runs functions in processes that stay for the next one: starting them takes seconds, a check far less."""

import atexit
import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastvideo.v1.distributed.parallel_state import close_world

TIMEOUT = timedelta(seconds=60)
_SECONDS_FOR_THE_OTHERS = 5.0


@dataclass(frozen=True)
class _Processes:
    """Ranks that wait for a function to call."""

    processes: list[mp.Process]
    connections: list[Connection]

    @classmethod
    def start(cls, count: int) -> "_Processes":
        context, processes, connections = mp.get_context("spawn"), [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(rank, count, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            connections.append(ours)
        return cls(processes, connections)

    def call(self, body: Callable[..., Any], arguments: tuple) -> tuple[str, list[Any]]:
        """The first traceback of a rank, if one failed; the others then fail as well, or wait for it in vain. And what
        each rank returned.
        """
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # on a port that is free
        for connection in self.connections:
            connection.send_bytes(pickle.dumps((store.port, body, arguments)))
        waiting, failed, values = list(self.connections), "", [None] * len(self.connections)
        while waiting:
            ready = wait(waiting, _SECONDS_FOR_THE_OTHERS if failed else None)
            if not ready:
                break
            for connection in ready:
                waiting.remove(connection)
                rank = self.connections.index(connection)
                try:
                    failure, values[rank] = connection.recv()
                except EOFError:
                    failure = f"rank {rank} died"
                failed = failed or failure
        return failed, values

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


_started: dict[int, _Processes] = {}


def run_processes(num_processes: int, body: Callable[..., None], *arguments: object) -> None:
    """Calls ``body(rank, *arguments)`` in each process of a group; fails with the traceback of the first that did."""
    run_ranks(num_processes, _in_group, body, arguments)


def run_ranks(num_processes: int, body: Callable[..., Any], *arguments: object) -> list[Any]:
    """What ``body(rank, *arguments)`` returns in each process; they find what torchrun tells, and no group as yet.

    Fails as :func:`run_processes` does.
    """
    if num_processes not in _started:
        _started[num_processes] = _Processes.start(num_processes)
        atexit.register(_started[num_processes].stop)
    failed, values = _started[num_processes].call(body, arguments)
    if failed:
        _started.pop(num_processes).stop()
        raise AssertionError(f"in one of {num_processes} processes:\n{failed}")
    return values


def _in_group(rank: int, body: Callable[..., None], arguments: tuple) -> None:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    body(rank, *arguments)


def _serve(rank: int, num_processes: int, calls: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    while True:
        try:
            port, body, arguments = pickle.loads(calls.recv_bytes())
        except EOFError:
            return
        os.environ["MASTER_PORT"] = str(port)
        try:
            value = body(rank, *arguments)
            close_world()
            if dist.is_initialized():
                dist.destroy_process_group()
            calls.send(("", value))
        except BaseException:
            calls.send((f"rank {rank}: {traceback.format_exc()}", None))
