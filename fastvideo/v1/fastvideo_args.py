"""What holds for a whole process: the model, its precision, the device and how work is done on it."""

import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.form import form

Precision = Literal["auto", "float32", "bfloat16", "float16"]

ATTENTION_BACKEND_VARIABLE = "FASTVIDEO_ATTENTION_BACKEND"


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A dataclass field that carries its description and bounds, for the command line and Prefect's form alike."""
    return field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True, kw_only=True)
class FastVideoArgs:
    """Settings of one process; a request's are :class:`~fastvideo.v1.sampling_params.SamplingParams`.

    ``auto`` precision is float32 on a CPU and bfloat16 on a GPU (VAE and image encoder: float32 on both, as published).
    """

    __pydantic_config__ = form("Engine", "The model, its precision, and how its work is shared among GPUs.")

    model_path: str = setting(EMBEDDED_MODEL, "Model directory, fsspec URI or locally cached hub id, Diffusers layout")

    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where models run; auto takes the GPU if there is one")
    precision: Precision = setting("auto", "Data type of the diffusion transformer")
    text_encoder_precision: Precision = setting("auto", "Data type of the text and image encoders")
    vae_precision: Precision = setting("auto", "Data type of the VAE")

    lora_path: str | None = setting(
        None, "URI of a LoRA adapter, a safetensors file or a folder with one, merged into `transformer` at load"
    )
    lora_scale: float = setting(1.0, "Strength of the adapter")
    quantization: Literal["fp8"] | None = setting(
        None, "Approximate: 8-bit matrix products in the transformer's blocks, a scale for each row"
    )
    attention_backend: str | None = setting(
        None,
        "Attention backend: FLASH_ATTN, TORCH_SDPA, SLIDING_TILE_ATTN, FP8_ATTN or a plugin's; without it "
        "FASTVIDEO_ATTENTION_BACKEND, else the fastest exact one installed",
    )
    sliding_tile_strategy: str | None = setting(
        None, "URI of the JSON file of windows that SLIDING_TILE_ATTN follows, made for one model and number of steps"
    )
    step_skip_threshold: float | None = setting(
        None,
        "Approximate: leave the transformer's blocks out while the change estimated since they last ran is below this "
        "(TeaCache); its authors' choice: Wan2.1 1.3B 0.08, 14B 0.2, HunyuanVideo 0.15",
        ge=0,
    )
    step_skip_rule: str | None = setting(
        None, "URI of the JSON file of coefficients for step_skip_threshold, for models that have none published"
    )
    vae_tiling: bool | None = setting(
        None,
        "Decode in overlapping spatial tiles: less memory, small blending differences; without it as the model needs",
    )
    expert_offload: bool = setting(
        False,
        "Keep only the Wan2.2 expert at work on the GPU, the other in host memory: half the memory, slower switches",
    )
    layer_offload: bool = setting(
        False,
        "Keep the blocks of transformers and text encoders in host memory, each copied to the GPU while the one before "
        "it computes",
    )
    shard_weights: bool = setting(
        False,
        "Each GPU of a sample keeps a part of the blocks of transformer, text encoder and VAE, gathered a block ahead",
    )

    num_gpus: int = setting(1, "GPUs; those that the sizes below leave over take other samples", ge=1)
    tp_size: int = setting(1, "GPUs that share each matrix of a model", ge=1)
    sp_size: int = setting(1, "GPUs that share the tokens of a sample", ge=1)
    ring_size: int = setting(1, "The part of `sp_size` that goes by ring attention, the rest by heads", ge=1)
    cfg_size: int = setting(1, "GPUs that share the two branches of guidance: 1 or 2", ge=1, le=2)

    def __post_init__(self) -> None:
        self.layout  # noqa: B018  raises where the sizes do not fit
        backend = attention_backend_name(self.attention_backend)
        if self.sliding_tile_strategy is not None and backend != "SLIDING_TILE_ATTN":
            raise ValueError(
                f"sliding_tile_strategy={self.sliding_tile_strategy!r} is for attention_backend SLIDING_TILE_ATTN, not "
                f"{backend}; set both or neither"
            )
        if self.step_skip_threshold is None and self.step_skip_rule is not None:
            raise ValueError(f"step_skip_rule={self.step_skip_rule!r} is for step_skip_threshold; set both or neither")
        if self.step_skip_threshold is not None and not 0 <= self.step_skip_threshold < math.inf:
            raise ValueError(f"step_skip_threshold={self.step_skip_threshold} must be a number of at least 0")
        self._check_weights()

    def _check_weights(self) -> None:
        """Where weights are kept: in one way, and sharded only among processes that need them at the same time."""
        if self.expert_offload and self.quantization is not None:
            raise ValueError(
                f"expert_offload=True and quantization={self.quantization!r} exclude each other; in 8 bits two experts "
                "take no more memory than one in 16: leave expert_offload out"
            )
        ways = [name for name in ("shard_weights", "layer_offload", "expert_offload") if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(
                f"{'=True and '.join(ways)}=True exclude each other; each keeps blocks away from the GPU in its own "
                f"way: set {ways[0]} alone"
            )
        if ways and ways != ["expert_offload"] and self.quantization is not None:
            raise ValueError(
                f"{ways[0]}=True and quantization={self.quantization!r} exclude each other; weights are quantized "
                "whole and on the GPU: leave one of them out"
            )
        if ways and ways != ["expert_offload"] and self.step_skip_threshold is not None:
            raise ValueError(
                f"{ways[0]}=True and step_skip_threshold={self.step_skip_threshold} exclude each other; processes that "
                "wait for each other's blocks may not leave them out on their own, nor look into the first one: leave "
                "one of them out"
            )
        if self.shard_weights and self.layout.cfg * self.layout.sequence == 1:
            raise ValueError(
                f"shard_weights=True shares weights out over cfg x ring x ulysses, which is 1 in layout {self.layout}; "
                "data groups work at their own pace, and tensor groups hold other weights: set sp_size or cfg_size to "
                "2 or more, or leave shard_weights out"
            )

    @property
    def layout(self) -> ParallelLayout:
        """How the processes are laid out; raises ``ValueError`` where the sizes do not fit ``num_gpus``."""
        return ParallelLayout.of_gpus(
            self.num_gpus,
            cfg_size=self.cfg_size,
            sp_size=self.sp_size,
            ring_size=self.ring_size,
            tp_size=self.tp_size,
        )


def attention_backend_name(choice: str | None = None) -> str | None:
    """The attention backend that is asked for: ``choice``, else the environment's, else None."""
    return choice or os.environ.get(ATTENTION_BACKEND_VARIABLE) or None
