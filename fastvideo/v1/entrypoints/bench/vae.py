"""`fastvideo bench vae`: the Wan VAE's decode at full size, beside diffusers, on random weights and latents."""

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any, cast

import torch

from fastvideo.v1.entrypoints.bench.timing import interleave
from fastvideo.v1.models.loader.component import build_model, resolve_device
from fastvideo.v1.models.loader.weights import assign_weights
from fastvideo.v1.models.vaes.wan import AutoencoderKLWan


def bench_vae(height: int, width: int, num_frames: int, cases: list[str], rounds: int) -> dict[str, Any]:
    """Seconds, peak memory and error of decoding one video for each case.

    A case is ``ours`` or ``diffusers``, then ``+float32`` or bfloat16. The error is the RMS distance to the first
    float32 case over its RMS.
    """
    from diffusers import AutoencoderKLWan as Peer

    device = resolve_device("auto")
    torch.backends.cudnn.benchmark = True
    config = json.loads((files("fastvideo.data") / "configs" / "wan_vae.json").read_text())
    with torch.device(device):
        weights = Peer.from_config(config).state_dict()
    latents = torch.randn(1, config["z_dim"], (num_frames - 1) // 4 + 1, height // 8, width // 8, device=device)
    decoders = {case: _decoder(case, config, weights, latents, device) for case in cases}
    reference = None
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for case, decode in decoders.items():
            decode()
            video, peak = _peak_memory(decode, device)
            if reference is None and "float32" in case:
                reference = video.float()
            error = None
            if reference is not None:
                error = float((video.float() - reference).norm() / reference.norm())
            rows.append({"case": case, "peak_gib": peak, "error": error})
            del video
        timings = interleave(decoders, rounds, device)
    for row in rows:
        timing = timings[row["case"]]
        row |= {"seconds": timing.median, "low": timing.low, "high": timing.high}
    return {"canvas": [num_frames, height, width], "rows": rows}


def _decoder(
    case: str, config: dict[str, Any], weights: dict[str, torch.Tensor], latents: torch.Tensor, device: torch.device
) -> Callable[[], torch.Tensor]:
    from diffusers import AutoencoderKLWan as Peer

    who, _, precision = case.partition("+")
    dtype = getattr(torch, precision or "bfloat16")
    if who == "diffusers":
        with torch.device("meta"):
            peer: Any = Peer.from_config(config)
        peer.eval().load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
        mean, std = (
            torch.tensor(config[f"latents_{name}"], device=device).view(-1, 1, 1, 1) for name in ("mean", "std")
        )
        raw = (latents * std + mean).to(dtype)
        return lambda: peer.decode(raw, return_dict=False)[0]
    model = cast(AutoencoderKLWan, build_model(AutoencoderKLWan, config, device, dtype))
    assign_weights(model, (("random weights", key, tensor) for key, tensor in weights.items()), "random weights")
    return lambda: model.decode(latents)


def _peak_memory(case: Callable[[], torch.Tensor], device: torch.device) -> tuple[torch.Tensor, float | None]:
    if device.type != "cuda":
        return case(), None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    video = case()
    return video, (torch.cuda.max_memory_allocated() - before) / 2**30
