"""Runs functions in gloo processes that stay for the next one: starting them takes seconds, a check far less."""

import atexit
import pickle
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=20)
_SECONDS_FOR_THE_OTHERS = 5.0


@dataclass(frozen=True)
class _Processes:
    """Ranks of one process group, which wait for a function to call."""

    processes: list[mp.Process]
    connections: list[Connection]

    @classmethod
    def start(cls, count: int) -> "_Processes":
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        context, processes, connections = mp.get_context("spawn"), [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(rank, count, address, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            connections.append(ours)
        return cls(processes, connections)

    def call(self, body: Callable[..., None], arguments: tuple) -> str:
        """The first traceback of a rank, if one failed; the others then fail as well, or wait for it in vain."""
        for connection in self.connections:
            connection.send_bytes(pickle.dumps((body, arguments)))
        waiting, failed = list(self.connections), ""
        while waiting:
            ready = wait(waiting, _SECONDS_FOR_THE_OTHERS if failed else None)
            if not ready:
                break
            for connection in ready:
                waiting.remove(connection)
                try:
                    failed = failed or connection.recv()
                except EOFError:
                    failed = failed or f"rank {self.connections.index(connection)} died"
        return failed

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


_started: dict[int, _Processes] = {}


def run_processes(num_processes: int, body: Callable[..., None], *arguments: object) -> None:
    """Calls ``body(rank, *arguments)`` in each process; fails with the traceback of the first that did."""
    if num_processes not in _started:
        _started[num_processes] = _Processes.start(num_processes)
        atexit.register(_started[num_processes].stop)
    if failed := _started[num_processes].call(body, arguments):
        _started.pop(num_processes).stop()
        raise AssertionError(f"in one of {num_processes} processes:\n{failed}")


def _serve(rank: int, num_processes: int, address: str, calls: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=num_processes, timeout=TIMEOUT)
    while True:
        try:
            body, arguments = pickle.loads(calls.recv_bytes())
        except EOFError:
            return
        try:
            body(rank, *arguments)
            calls.send("")
        except BaseException:
            calls.send(f"rank {rank}: {traceback.format_exc()}")
