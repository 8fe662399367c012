"""Who runs a pipeline for an interactive caller: this process, or one process a GPU."""

from abc import ABC, abstractmethod
from typing import Any, Self

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.gpu_worker import GPUWorker


class Executor(ABC):
    """A loaded pipeline on one or more GPU workers; a context manager that shuts down at its end."""

    def __init__(self, fastvideo_args: FastVideoArgs) -> None:
        self.fastvideo_args = fastvideo_args

    @abstractmethod
    def execute_forward(self, batch: ForwardBatch, context: ForwardContext | None = None) -> ForwardBatch:
        """Runs all phases on ``batch``; what a stage raises is raised here."""

    @abstractmethod
    def collective_rpc(self, method: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
        """Calls a method of every :class:`GPUWorker`, and returns the results in the order of ranks.

        Raises what the first rank to fail raised, and ``TimeoutError`` after ``timeout`` seconds.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Ends what was started; the executor is of no use after that."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()


class UniProcExecutor(Executor):
    """One worker, in this process; a call cannot be cut short, so there is no timeout."""

    def __init__(self, fastvideo_args: FastVideoArgs) -> None:
        super().__init__(fastvideo_args)
        self.worker = GPUWorker(fastvideo_args)
        self.worker.init_device()
        self.worker.load()

    def execute_forward(self, batch: ForwardBatch, context: ForwardContext | None = None) -> ForwardBatch:
        return self.worker.execute_forward(batch, context)

    def collective_rpc(self, method: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
        if timeout is not None:
            raise ValueError(f"timeout={timeout}: a call in this process cannot be cut short; use MultiProcExecutor")
        return [getattr(self.worker, method)(*arguments)]

    def shutdown(self) -> None:
        self.worker.shutdown()
