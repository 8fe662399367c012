"""`fastvideo bench dit`: one forward of a diffusion transformer at full size, beside its peers.

Weights and inputs are random: speed does not depend on their values, as long as they are not zeros.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch

from fastvideo.v1.attention.layer import select_attention_backends
from fastvideo.v1.entrypoints.bench.architectures import Architecture, Tensors, load_architecture
from fastvideo.v1.entrypoints.bench.roofline import matmul_ceiling
from fastvideo.v1.entrypoints.bench.timing import interleave
from fastvideo.v1.models.dits.workload import dit_workload
from fastvideo.v1.models.loader.component import resolve_device

ERROR_LAYERS = 4
BACKENDS = {"sdpa": "TORCH_SDPA", "flash": "FLASH_ATTN", "fp8attn": "FP8_ATTN"}


def bench_dit(
    model: str, height: int, width: int, num_frames: int, cases: list[str], rounds: int, device_choice: str = "auto"
) -> dict[str, Any]:
    """Seconds, TFLOP/s and error of one bfloat16 forward for each case.

    A case is ``ours`` or ``diffusers``, then options: ``+sdpa``, ``+flash``, ``+fp8attn`` (attention of 8-bit floats)
    and ``+fp8`` (matrix products) for ours, ``+compile`` for diffusers. The error is the RMS distance to our float32
    forward over its RMS, of the model's first blocks at full width, and, as ``error_ratio``, over that of diffusers.
    """
    device = resolve_device(device_choice)
    architecture = load_architecture(model)
    inputs = architecture.random_inputs(height, width, num_frames, device)
    errors = _errors(cases, architecture.shortened(ERROR_LAYERS), inputs, device)
    weights = architecture.random_weights(device)
    forwards = {case: _forward(case, architecture, weights, inputs, device) for case in cases}
    with torch.inference_mode():
        for forward in forwards.values():
            forward(), forward()
        timings = interleave(forwards, rounds, device)
    ceiling = matmul_ceiling(device, torch.bfloat16)
    t, h, w = inputs["latents"].shape[2:]
    work = dit_workload(architecture.config, (t, h, w), weight_bytes=0)
    assert work is not None, f"no arithmetic for {model}"
    rows = [
        {
            "case": case,
            "ms": timing.median * 1e3,
            "low": timing.low * 1e3,
            "high": timing.high * 1e3,
            "tflops": work.flops / timing.median / 1e12,
            "of_ceiling": work.flops / timing.median / ceiling,
            "error": errors[case],
            "error_ratio": errors[case] / errors["diffusers"],
        }
        for case, timing in timings.items()
    ]
    return {
        "model": model,
        "canvas": [num_frames, height, width],
        "tokens": work.tokens,
        "tflop": work.flops / 1e12,
        "ceiling_tflops": ceiling / 1e12,
        "rows": rows,
    }


def _errors(cases: list[str], architecture: Architecture, inputs: Tensors, device: torch.device) -> dict[str, float]:
    weights = architecture.random_weights(device)
    exact = architecture.our_model(weights, device, torch.float32)
    rounded = {name: tensor.bfloat16().float() for name, tensor in inputs.items() if tensor.is_floating_point()}
    with torch.inference_mode():
        reference = architecture.ours(exact, {**inputs, **rounded}, torch.float32)
        errors = {
            case: relative_rms(_forward(case, architecture, weights, inputs, device)(), reference)
            for case in dict.fromkeys([*cases, "diffusers"])
        }
    del exact
    gc.collect()
    torch.cuda.empty_cache()
    return errors


def _forward(
    case: str, architecture: Architecture, weights: Tensors, inputs: Tensors, device: torch.device
) -> Callable[[], torch.Tensor]:
    who, *options = case.split("+")
    if who == "diffusers":
        peer = architecture.their_model(weights)
        if "compile" in options:
            peer.compile_repeated_blocks(fullgraph=True)
        return lambda: architecture.theirs(peer, inputs, torch.bfloat16)
    model = architecture.our_model(weights, device, torch.bfloat16)
    if "fp8" in options:
        model.quantize()
    choice = next((BACKENDS[option] for option in options if option in BACKENDS), None)
    select_attention_backends(model, device, torch.bfloat16, choice)
    return lambda: architecture.ours(model, inputs, torch.bfloat16)


def relative_rms(out: torch.Tensor, reference: torch.Tensor) -> float:
    """The RMS distance to ``reference`` over its RMS."""
    return float((out.float() - reference).square().mean().sqrt() / reference.square().mean().sqrt())
