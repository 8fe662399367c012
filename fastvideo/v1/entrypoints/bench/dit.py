"""`fastvideo bench dit`: one forward of a diffusion transformer at full size, beside its peers.

Weights and inputs are random: speed does not depend on their values, as long as they are not zeros.
"""

import gc
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import torch

from fastvideo.v1.attention.layer import select_attention_backends
from fastvideo.v1.entrypoints.bench.roofline import matmul_ceiling, wan_flops
from fastvideo.v1.entrypoints.bench.timing import interleave
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.dits.wan import WanTransformer3DModel, WanTransformerConfig
from fastvideo.v1.models.loader.component import build_model, resolve_device
from fastvideo.v1.models.loader.weights import assign_weights

TEXT_TOKENS = 512
ERROR_LAYERS = 4
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def bench_dit(
    model: str, height: int, width: int, num_frames: int, cases: list[str], rounds: int, device_choice: str = "auto"
) -> dict[str, Any]:
    """Seconds, TFLOP/s and error of one bfloat16 forward for each case.

    A case is ``ours`` or ``diffusers``, then options: ``+sdpa`` or ``+flash`` for ours, ``+compile`` for diffusers. The
    error is the RMS distance to our float32 forward over its RMS, of the model's first blocks at full width, and, as
    ``error_ratio``, over that of diffusers.
    """
    device = resolve_device(device_choice)
    config = json.loads((files("fastvideo.data") / "configs" / f"{model}.json").read_text())
    inputs = random_inputs(config, height, width, num_frames, device)
    errors = _errors(cases, {**config, "num_layers": min(ERROR_LAYERS, config["num_layers"])}, inputs, device)
    weights = random_weights(config, device)
    forwards = {case: _forward(case, config, weights, inputs, device) for case in cases}
    with torch.inference_mode():
        for forward in forwards.values():
            forward(), forward()
        timings = interleave(forwards, rounds, device)
    ceiling = matmul_ceiling(device, torch.bfloat16)
    tokens = inputs[0][0, 0].numel() // 4
    flops = wan_flops(WanTransformerConfig.from_dict(config), tokens, TEXT_TOKENS)
    rows = [
        {
            "case": case,
            "ms": timing.median * 1e3,
            "low": timing.low * 1e3,
            "high": timing.high * 1e3,
            "tflops": flops / timing.median / 1e12,
            "of_ceiling": flops / timing.median / ceiling,
            "error": errors[case],
            "error_ratio": errors[case] / errors["diffusers"] if "diffusers" in errors else None,
        }
        for case, timing in timings.items()
    ]
    return {
        "model": model,
        "canvas": [num_frames, height, width],
        "tokens": tokens,
        "tflop": flops / 1e12,
        "ceiling_tflops": ceiling / 1e12,
        "rows": rows,
    }


def _errors(cases: list[str], config: dict[str, Any], inputs: Inputs, device: torch.device) -> dict[str, float]:
    weights = random_weights(config, device)
    latents, text, timestep = inputs
    exact = our_model(config, weights, device, torch.float32)
    with torch.inference_mode():
        reference = exact(latents.bfloat16().float(), text.bfloat16().float(), timestep)
        errors = {
            case: _relative_rms(_forward(case, config, weights, inputs, device)(), reference)
            for case in dict.fromkeys([*cases, "diffusers"])
        }
    del exact
    gc.collect()
    torch.cuda.empty_cache()
    return errors


def random_weights(config: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """A bfloat16 state dict in the checkpoint's names, drawn as diffusers initialises its modules."""
    from diffusers import WanTransformer3DModel as Peer

    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            peer = Peer.from_config(config)
        finally:
            torch.set_default_dtype(default)
    return dict(peer.state_dict())


def random_inputs(config: dict[str, Any], height: int, width: int, num_frames: int, device: torch.device) -> Inputs:
    """Latents, text embeddings (a quarter real, the rest zero padding) and a timestep."""
    shape = (1, config["in_channels"], (num_frames - 1) // 4 + 1, height // 8, width // 8)
    latents = torch.randn(shape, device=device)
    text = torch.randn(1, TEXT_TOKENS, config["text_dim"], device=device)
    text[:, TEXT_TOKENS // 4 :] = 0
    return latents, text, torch.full((1,), 637, device=device)


def our_model(
    config: dict[str, Any], weights: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> Model:
    model = build_model(WanTransformer3DModel, config, device, dtype)
    assign_weights(model, (("random weights", key, tensor) for key, tensor in weights.items()), "random weights")
    return model


def _forward(
    case: str, config: dict[str, Any], weights: dict[str, torch.Tensor], inputs: Inputs, device: torch.device
) -> Callable[[], torch.Tensor]:
    who, *options = case.split("+")
    latents, text, timestep = inputs[0].bfloat16(), inputs[1].bfloat16(), inputs[2]
    if who == "diffusers":
        peer = _diffusers_model(config, weights)
        if "compile" in options:
            peer.compile_repeated_blocks(fullgraph=True)
        return lambda: peer(latents, timestep, text, return_dict=False)[0]
    model = our_model(config, weights, device, torch.bfloat16)
    choice = {"sdpa": "TORCH_SDPA", "flash": "FLASH_ATTN"}.get(next(iter({"sdpa", "flash"} & set(options)), ""))
    select_attention_backends(model, device, torch.bfloat16, choice)
    return lambda: model(latents, text, timestep)


def _diffusers_model(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    from diffusers import WanTransformer3DModel as Peer

    with torch.device("meta"):
        peer = Peer.from_config(config)
    rope = Peer.from_config({**config, "num_layers": 0}).rope
    peer.load_state_dict(weights, assign=True, strict=True)
    peer.rope = rope.to(next(iter(weights.values())).device)
    for name, module in peer.named_modules():
        if name.rpartition(".")[2] in ("time_embedder", "norm2"):
            module.float()
        if "scale_shift_table" in module._parameters:
            module.scale_shift_table.data = module.scale_shift_table.data.float()
    return peer.eval()


def _relative_rms(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.float() - reference).square().mean().sqrt() / reference.square().mean().sqrt())
