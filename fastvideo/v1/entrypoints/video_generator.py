"""Videos made interactively: every phase loaded, one call a video, on one GPU or several."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from fastvideo.v1.dataset.config import VideoConfig
from fastvideo.v1.dataset.objects.video import VideoWriter
from fastvideo.v1.dataset.sources.image_file import decode_image, read_image
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.logger import init_logger
from fastvideo.v1.output_file import check_output_file
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.sampling_params import UNUSED_NEGATIVE, check_text
from fastvideo.v1.worker.executor import Executor, UniProcExecutor
from fastvideo.v1.worker.multiproc_executor import MultiProcExecutor

logger = init_logger(__name__)


@dataclass(frozen=True)
class VideoResult:
    """One video: ``frames`` uint8 ``[t, h, w, c]``, ``path`` of the file if one was asked for, seconds per stage."""

    frames: torch.Tensor
    path: str | None
    timings: dict[str, float]


class VideoGenerator:
    """Makes videos from prompts; see :meth:`from_pretrained`. A context manager that shuts down at its end."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    @classmethod
    def from_pretrained(cls, model_path: str, **args: Any) -> Self:
        """Loads the checkpoint at ``model_path``; ``args`` are the fields of :class:`FastVideoArgs`.

        With ``num_gpus`` above 1, and ``sp_size``, ``tp_size`` or ``cfg_size`` to say how a video is split among them,
        each GPU has a process of its own (:class:`MultiProcExecutor`).
        """
        fastvideo_args = FastVideoArgs(model_path=model_path, **args)
        executor = MultiProcExecutor if fastvideo_args.layout.size > 1 else UniProcExecutor
        return cls(executor(fastvideo_args))

    def shutdown(self) -> None:
        """Ends the processes of other GPUs, if there are any; the generator is of no use after that."""
        self.executor.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def set_lora(self, path: str | None, scale: float = 1.0) -> None:
        """Puts a LoRA adapter beside the transformer's weights, in place of the one before; None takes it off.

        An adapter that was merged at load (``lora_path``) stays merged.
        """
        self.executor.collective_rpc("set_lora", path, scale)

    def generate_video(
        self,
        prompt: str,
        output_path: str | None = None,
        *,
        image_path: str | None = None,
        on_step: Callable[[int, int], None] | None = None,
        **sampling: Any,
    ) -> VideoResult:
        """Makes one video, and writes it to ``output_path`` (mp4) if given; ``on_step`` hears of (steps done, of all).

        ``image_path``, a path or URI, is the image that the video starts from, for a model that takes one.
        ``sampling`` are the fields of :class:`SamplingParams`; those left out have the model's defaults. The same seed
        starts from the same noise as diffusers does with ``torch.Generator("cpu").manual_seed(seed)``.
        """
        check_text("prompt", prompt)
        if not prompt.strip():
            raise ValueError(f"prompt {prompt!r} is empty; describe what the video shows")
        if output_path is not None:
            check_output_file("output_path", output_path, ".mp4")
        params = self.executor.collective_rpc("sampling_defaults")[0].with_overrides(**sampling)
        if params.negative_prompt and not params.is_guided:
            logger.warning("negative_prompt is %s", UNUSED_NEGATIVE)
        image = None if image_path is None else [torch.from_numpy(decode_image(read_image(image_path)))]
        batch = ForwardBatch(prompt=[prompt], seeds=[params.seed], image=image, sampling=params)
        context = ForwardContext()
        if on_step is not None:
            context.on_step = lambda state: on_step(state.step_index, params.num_inference_steps)
        batch = self.executor.execute_forward(batch, context)
        assert batch.frames is not None, "the decode phase leaves frames"
        frames = batch.frames[0]
        if output_path is not None:
            with VideoWriter(output_path, params.width, params.height, params.fps, VideoConfig()) as writer:
                writer.write(frames.numpy())
        return VideoResult(frames, output_path, context.timings)
