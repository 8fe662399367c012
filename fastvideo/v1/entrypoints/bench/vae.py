"""`fastvideo bench vae`: a VAE's decode at full size, beside diffusers, on random weights and latents."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from fastvideo.v1.entrypoints.bench.memory import load_config
from fastvideo.v1.entrypoints.bench.timing import interleave
from fastvideo.v1.models.loader.component import build_model, resolve_device
from fastvideo.v1.models.loader.weights import assign_weights
from fastvideo.v1.models.registry import resolve_model

# Config, class (of ours and of diffusers), and whether it decodes in tiles, as its pipeline does by default.
MODELS = {
    "wan": ("wan_vae", "AutoencoderKLWan", False),
    "hunyuan": ("hunyuan_vae", "AutoencoderKLHunyuanVideo", True),
}


def bench_vae(model: str, height: int, width: int, num_frames: int, cases: list[str], rounds: int) -> dict[str, Any]:
    """Seconds, peak memory and error of decoding one video for each case.

    ``model`` is ``wan`` or ``hunyuan``. A case is ``ours`` or ``diffusers``, then ``+float32`` or bfloat16. The error
    is the RMS distance to the first float32 case over its RMS.
    """
    if model not in MODELS:
        raise ValueError(f"no VAE {model!r}; there are: {', '.join(MODELS)}")
    device = resolve_device("auto")
    torch.backends.cudnn.benchmark = True
    decoders = _decoders(cases, model, height, width, num_frames, device)
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
    return {"model": model, "canvas": [num_frames, height, width], "tiles": MODELS[model][2], "rows": rows}


def random_decoder(
    model: str, height: int, width: int, num_frames: int, device: torch.device
) -> Callable[[], torch.Tensor]:
    """Our bfloat16 decode of random latents by ``model`` (see :func:`bench_vae`), its weights drawn now."""
    (decode,) = _decoders(["ours+bfloat16"], model, height, width, num_frames, device).values()
    return decode


def _decoders(
    cases: list[str], model: str, height: int, width: int, num_frames: int, device: torch.device
) -> dict[str, Callable[[], torch.Tensor]]:
    config = load_config(MODELS[model][0])
    with torch.device(device):
        weights = _peer_class(model).from_config(config).state_dict()
    channels = config.get("z_dim") or config["latent_channels"]
    latents = torch.randn(1, channels, (num_frames - 1) // 4 + 1, height // 8, width // 8, device=device)
    return {case: _decoder(case, model, config, weights, latents) for case in cases}


def _decoder(
    case: str, name: str, config: dict[str, Any], weights: dict[str, torch.Tensor], latents: torch.Tensor
) -> Callable[[], torch.Tensor]:
    who, _, precision = case.partition("+")
    dtype = getattr(torch, precision or "bfloat16")
    _, class_name, tiles = MODELS[name]
    if who == "diffusers":
        with torch.device("meta"):
            peer = _peer_class(name).from_config(config)
        peer.eval().load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
        if tiles:
            peer.enable_tiling()
        raw = _denormalized(config, latents).to(dtype)
        return lambda: peer.decode(raw, return_dict=False)[0].clamp_(-1.0, 1.0)  # its pipeline does, or the VAE itself
    model: Any = build_model(resolve_model(class_name), config, latents.device, dtype)
    assign_weights(model, (("random weights", key, tensor) for key, tensor in weights.items()), "random weights")
    model.use_tiling = tiles
    return lambda: model.decode(latents)


def _denormalized(config: dict[str, Any], latents: torch.Tensor) -> torch.Tensor:
    """What diffusers' pipelines make of latents before they decode them."""
    if "latents_mean" not in config:
        return latents / config["scaling_factor"]
    mean, std = (
        torch.tensor(config[f"latents_{name}"], device=latents.device).view(-1, 1, 1, 1) for name in ("mean", "std")
    )
    return latents * std + mean


def _peer_class(name: str) -> Any:
    return getattr(diffusers, MODELS[name][1])


def _peak_memory(case: Callable[[], torch.Tensor], device: torch.device) -> tuple[torch.Tensor, float | None]:
    if device.type != "cuda":
        return case(), None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    video = case()
    return video, (torch.cuda.max_memory_allocated() - before) / 2**30
