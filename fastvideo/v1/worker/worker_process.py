"""One rank of :class:`~fastvideo.v1.worker.multiproc_executor.MultiProcExecutor`: ``-m … CONTROL_FD FRAMES_FD``.

A fresh interpreter that does not import the caller's ``__main__``, so that a notebook or an unguarded script may start
it. It lives as long as the other end of its control socket is open.
"""

import os
import pickle
import signal
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread

import torch
import torch.distributed as dist

from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.messages import Call, Done, Failed, Start, Step, pack


def serve(control: Connection, frames_file: int) -> None:
    """Answers one call after another until the other end closes."""
    calls: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_receive, args=(control, calls), daemon=True).start()
    worker: GPUWorker | None = None
    while True:
        call = pickle.loads(calls.get())
        try:
            if isinstance(call, Start):
                worker = GPUWorker(call.fastvideo_args)
                worker.init_device(timedelta(seconds=call.collective_seconds))
                worker.load()
                answer: Done | Failed = Done(None)
            else:
                assert worker is not None, "the settings come first"
                answer = _answer(worker, call, control, frames_file)
        except Exception as error:  # the boundary of a process: whatever it is, the caller shall hear of it
            answer = _failed(error)
        control.send_bytes(pack(answer))


def _receive(control: Connection, calls: "SimpleQueue[bytes]") -> None:
    """Ends all workers and what they started, whatever they are doing, once nobody is there to hear of it.

    One that was stopped cannot end itself: the others do. Of workers that all were, the kernel wakes the group.
    """
    try:
        while True:
            calls.put(control.recv_bytes())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


def _answer(worker: GPUWorker, call: Call, control: Connection, frames_file: int) -> Done:
    if call.method != "execute_forward":
        return Done(getattr(worker, call.method)(*call.arguments))
    context = ForwardContext()
    if call.wants_steps:
        context.on_step = lambda batch: control.send_bytes(pickle.dumps(Step(batch.step_index)))
    (batch,) = call.arguments
    batch = worker.execute_forward(batch, context)
    if worker.rank > 0:
        return Done(None)  # all ranks of a sample end with the same
    frames, batch.frames = batch.frames, None
    if frames is None:
        return Done((batch, context.timings))
    _write(frames, frames_file)
    return Done((batch, context.timings), tuple(frames.shape))


def _write(frames: torch.Tensor, file: int) -> None:
    os.ftruncate(file, frames.numel())
    torch.from_file(f"/proc/self/fd/{file}", shared=True, size=frames.numel(), dtype=torch.uint8).copy_(
        frames.flatten()
    )


def _failed(error: Exception) -> Failed:
    trace = traceback.format_exc()
    by_others = isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo raises a bare RuntimeError
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of somebody's own, whose constructor may do anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Failed(error, trace, time.monotonic(), by_others)


if __name__ == "__main__":
    control_fd, frames_fd = (int(argument) for argument in sys.argv[1:])
    serve(Connection(control_fd), frames_fd)
