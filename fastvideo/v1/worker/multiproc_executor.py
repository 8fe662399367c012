"""One process a GPU behind one caller: sockets for control, shared memory for frames."""

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from typing import Any

import torch
import torch.distributed as dist

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.executor import Executor
from fastvideo.v1.worker.messages import Call, Done, Failed, Start, Step
from fastvideo.v1.worker.process import StopWatch

_POLL_SECONDS = 0.5
_LASTING = ("set_lora",)  # calls whose effect a restart brings back
_GRACE_SECONDS = 2.0  # in which ranks may say why, after the first of them is known to have failed


class WorkerFailed(RuntimeError):
    """A worker died, hung or raised; the message ends with its traceback where it has one."""


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    control: Connection
    frames_file: int
    listener: Thread
    sender: Thread | None = None  # of the latest request


Heard = SimpleQueue[tuple[int, bytes | None]]
"""The whole messages of workers, by rank; None for one that is gone."""


class MultiProcExecutor(Executor):
    """A GPU worker in each of ``num_gpus`` processes, that work on one sample together.

    When one of them raises, dies, or has stopped for ``hang_seconds``, the call ends for all with what the first
    raised, and the next call starts all of them anew, which loads the model again; where all raised, of one mind, they
    stay. A rank that waits longer than ``collective_seconds`` for another raises. Workers end with this process,
    however it ends. Calls from several threads take turns; from within a call (``on_step``, a signal handler) only
    :meth:`shutdown` may be called, which ends that call.
    """

    def __init__(
        self, fastvideo_args: FastVideoArgs, hang_seconds: float = 5.0, collective_seconds: float = 600.0
    ) -> None:
        super().__init__(fastvideo_args)
        if fastvideo_args.layout.data > 1:
            raise ValueError(
                f"layout {fastvideo_args.layout}: the processes of an executor share one sample, so data must be 1; "
                f"nearest: num_gpus={fastvideo_args.layout.model_size}"
            )
        self.hang_seconds = hang_seconds
        self.collective_seconds = collective_seconds
        self._lock = RLock()
        self._is_busy = False
        self._is_shut_down = False
        self._lasting: dict[str, Call] = {}
        self._workers: list[_Worker] = []
        self._heard: Heard = SimpleQueue()
        self._store: dist.TCPStore | None = None
        with self._turn():
            self._start()

    def execute_forward(self, batch: ForwardBatch, context: ForwardContext | None = None) -> ForwardBatch:
        """As :meth:`Executor.execute_forward`; of the context ``timings`` and ``on_step`` are served, which sees the
        ``step_index`` alone.
        """
        context = context or ForwardContext()
        if context.on_frames is not None:
            raise ValueError("on_frames is for a pipeline in this process; take the frames of the returned batch")
        call = Call("execute_forward", (batch,), wants_steps=context.on_step is not None)
        with self._turn():
            first = self._call([call] * self._size, None, context.on_step)[0]
            made, timings = first.value
            context.timings.update(timings)
            if first.frames_shape is not None:
                made.frames = _read(self._workers[0].frames_file, first.frames_shape)
        return made

    def collective_rpc(self, method: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
        call = Call(method, arguments)
        with self._turn():
            values = [done.value for done in self._call([call] * self._size, timeout)]
            if method in _LASTING:
                self._lasting[method] = call
        return values

    def shutdown(self) -> None:
        with self._lock:
            self._is_shut_down = True
            if self._is_busy:  # within a call of this thread, which clears up once it finds its workers gone
                self._kill()
            else:
                self._end()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One call, which nothing but a shutdown may come into the midst of."""
        with self._lock:
            if self._is_busy:
                raise RuntimeError("an executor takes no call from within another; make it once that has returned")
            self._is_busy = True
            try:
                yield
            except WorkerFailed:
                if not self._is_shut_down:
                    raise
            finally:
                self._is_busy = False
                if self._is_shut_down:
                    self._end()
            if self._is_shut_down:
                raise RuntimeError("this executor was shut down in the midst of the call")

    @property
    def _size(self) -> int:
        return self.fastvideo_args.layout.size

    def _start(self) -> None:
        # As under torchrun, the store is served from outside of the ranks, on a port that is free by construction.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._heard = SimpleQueue()
        try:
            for rank in range(self._size):
                self._workers.append(self._spawn(rank, self._store.port))
            self._ask([Start(self.fastvideo_args, self.collective_seconds)] * self._size, None)
            for call in self._lasting.values():
                self._ask([call] * self._size, None)
        except BaseException:  # of one mind or not, workers without a model are of no use
            self._end()
            raise

    def _spawn(self, rank: int, port: int) -> _Worker:
        ours, theirs = socket.socketpair()
        frames_file = os.memfd_create("fastvideo-frames")  # has no name: it is gone with the last process that has it
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self._size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        command = [sys.executable, "-m", "fastvideo.v1.worker.worker_process", str(theirs.fileno()), str(frames_file)]
        group = self._workers[0].process.pid if self._workers else 0
        with theirs:  # a process group of their own, so that Ctrl-C reaches us alone, and each can end them all
            process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno(), frames_file], process_group=group
            )
        control = Connection(ours.detach())
        return _Worker(rank, process, control, frames_file, _listen(rank, control, self._heard))

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            if self._workers:
                os.killpg(self._workers[0].process.pid, signal.SIGKILL)

    def _end(self) -> None:
        self._kill()
        for worker in self._workers:
            worker.process.wait()
            if worker.sender is not None:
                worker.sender.join()  # it fails now at the latest, and must not write to what its file becomes
            worker.listener.join()
            worker.control.close()
            os.close(worker.frames_file)
        self._workers, self._store = [], None

    def _call(
        self,
        requests: Sequence[Call],
        timeout: float | None,
        on_step: Callable[[ForwardBatch], None] | None = None,
    ) -> list[Done]:
        if self._is_shut_down:
            raise RuntimeError("this executor was shut down; make another")
        if any(worker.process.poll() is not None for worker in self._workers):
            self._end()  # lost between two calls
        if not self._workers:
            self._start()
        return self._ask(requests, timeout, on_step)

    def _ask(
        self,
        requests: Sequence[Call | Start],
        timeout: float | None,
        on_step: Callable[[ForwardBatch], None] | None = None,
    ) -> list[Done]:
        """Every rank's answer; whatever else ends the wait, an exception of the caller's ``on_step`` too, ends all."""
        is_whole = False
        try:
            for worker, request in zip(self._workers, requests, strict=True):
                # In a thread, since a worker that was stopped takes no more than its socket holds.
                worker.sender = Thread(target=_send, args=(worker.control, pickle.dumps(request)), daemon=True)
                worker.sender.start()
            answers = _Answers(self._workers, self._heard, self.hang_seconds, on_step)
            failure = answers.collect(timeout)
            is_whole = len(answers.of_rank) == self._size and not any(
                isinstance(answer, Failed) and answer.by_others for answer in answers.of_rank.values()
            )
            is_whole &= len({type(answer) for answer in answers.of_rank.values()}) == 1
        finally:
            if not is_whole:
                self._end()
        if failure is not None:
            raise failure
        return [answer for _, answer in sorted(answers.of_rank.items()) if isinstance(answer, Done)]


class _Answers:
    """What the workers say to one request, until all have answered or it is clear that they will not."""

    def __init__(
        self,
        workers: Sequence[_Worker],
        heard: Heard,
        hang_seconds: float,
        on_step: Callable[[ForwardBatch], None] | None,
    ) -> None:
        self.heard = heard
        self.workers = {worker.rank: worker for worker in workers}
        self.on_step = on_step
        self.of_rank: dict[int, Done | Failed] = {}
        self.lost: dict[int, str] = {}
        self._stops = StopWatch(hang_seconds)

    def collect(self, timeout: float | None) -> Exception | None:
        """Waits for the answers; returns what went wrong first, if anything did."""
        deadline = None if timeout is None else time.monotonic() + timeout
        end: float | None = None
        while waiting := self._silent():
            try:
                rank, message = self.heard.get(timeout=_POLL_SECONDS)
            except Empty:
                rank, message = -1, None
            for worker in waiting:
                if worker.rank == rank:
                    self._hear(worker, message)
                else:
                    self._watch(worker)
            now = time.monotonic()
            if end is None and (self.lost or any(isinstance(answer, Failed) for answer in self.of_rank.values())):
                end = now + _GRACE_SECONDS
            if end is not None and now > end:
                break
            if deadline is not None and now > deadline and (silent := self._silent()):
                ranks = ", ".join(str(worker.rank) for worker in silent)
                return TimeoutError(f"no answer of rank {ranks} within {timeout:g} s; the workers are ended")
        return self._failure()

    def _silent(self) -> list[_Worker]:
        """Those that may yet answer."""
        return [w for rank, w in self.workers.items() if rank not in self.of_rank and rank not in self.lost]

    def _hear(self, worker: _Worker, data: bytes | None) -> None:
        if data is None:
            code = worker.process.wait()
            self.lost[worker.rank] = f"rank {worker.rank} died (exit code {code})"
            return
        message = pickle.loads(data)
        if not isinstance(message, Step):
            self.of_rank[worker.rank] = message
        elif worker.rank == 0 and self.on_step is not None:
            self.on_step(ForwardBatch(step_index=message.step_index))

    def _watch(self, worker: _Worker) -> None:
        if self._stops.is_lost(worker.process.pid):
            self.lost[worker.rank] = f"rank {worker.rank} has been stopped for {self._stops.seconds:g} s (SIGSTOP?)"

    def _failure(self) -> Exception | None:
        failed = [(answer.at, rank, answer) for rank, answer in self.of_rank.items() if isinstance(answer, Failed)]
        own = sorted(entry[:2] for entry in failed if not entry[2].by_others)
        if not own and self.lost:
            return WorkerFailed("; ".join(self.lost.values()))
        if not failed:
            return None
        _, rank = own[0] if own else min(entry[:2] for entry in failed)
        answer = self.of_rank[rank]
        assert isinstance(answer, Failed)
        answer.error.__cause__ = WorkerFailed(f"rank {rank} of {len(self.workers)}:\n{answer.trace}")
        return answer.error


def _listen(rank: int, control: Connection, heard: Heard) -> Thread:
    """Reads in a thread, since a worker that was stopped in the middle of a message leaves it cut short."""

    def read() -> None:
        with suppress(EOFError, OSError):
            while True:
                heard.put((rank, control.recv_bytes()))
        heard.put((rank, None))

    thread = Thread(target=read, daemon=True)
    thread.start()
    return thread


def _send(control: Connection, request: bytes) -> None:
    with suppress(OSError):  # the worker is gone, which whoever waits for its answer finds out
        control.send_bytes(request)


def _read(file: int, shape: tuple[int, ...]) -> torch.Tensor:
    with mmap.mmap(file, 0) as memory:
        return torch.frombuffer(bytearray(memory), dtype=torch.uint8).view(shape)
