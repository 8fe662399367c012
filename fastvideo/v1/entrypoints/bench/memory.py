"""`fastvideo bench memory`: what each phase of a system needs at full size, computed from modules without weights.

A call on the meta device allocates nothing and yet makes every tensor; counting those that live at once gives the
peak. It takes the plain path through the layers: the fused kernels of a GPU keep less between them, its allocator and
cuDNN's workspaces somewhat more. Attention counts its result alone, as every fused kernel has it.
"""

import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastvideo.v1.attention.layer import select_attention_backends
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.dits.kept_states import KeptStates
from fastvideo.v1.models.dits.workload import WAN_IMAGE_TOKENS, WAN_TEXT_TOKENS
from fastvideo.v1.models.loader.component import build_model, component_dtype
from fastvideo.v1.models.registry import resolve_model
from fastvideo.v1.pipelines.phase import Phase

Call = Callable[[Any, "Canvas", torch.device], object]  # one call of a model, inputs made for the canvas
META = torch.device("meta")


@dataclass(frozen=True)
class Canvas:
    """A video in pixels and pixel frames."""

    height: int
    width: int
    num_frames: int


@dataclass(frozen=True)
class Component:
    """One model of a system: the phase and the ``model_index.json`` name it has there, its config, its class."""

    phase: Phase
    name: str
    config: str
    class_name: str
    run: Call


@dataclass(frozen=True)
class System:
    """What a checkpoint consists of, and the canvas that it is asked for if nothing else is said."""

    canvas: Canvas
    components: tuple[Component, ...]


def bench_memory(systems: list[str], canvas: dict[str, int | None]) -> dict[str, Any]:
    """GiB of weights and of everything at the peak, by system and phase; ``canvas`` overrides sides and frames.

    A phase holds the weights of all its components, and the peak is that of its hungriest one beside them. Of two
    experts, one is on the device (``engine.expert_offload``); without it, add the other's weights. Where there is a
    GPU, the peak is measured on it, too, with random weights.
    """
    rows: list[dict[str, Any]] = []
    devices = [META, torch.device("cuda")] if torch.cuda.is_available() else [META]
    for name in systems or list(SYSTEMS):
        if name not in SYSTEMS:
            raise ValueError(f"no system {name!r}; there are: {', '.join(SYSTEMS)}")
        system = SYSTEMS[name]
        size = Canvas(**{key: canvas.get(key) or getattr(system.canvas, key) for key in vars(system.canvas)})
        for phase in Phase:
            parts = [part for part in system.components if part.phase is phase]
            rows.append(
                {"system": name, "canvas": f"{size.height}x{size.width}x{size.num_frames}", "phase": str(phase)}
            )
            for device in devices:
                weights, activations = zip(*(component_needs(part, size, device) for part in parts), strict=True)
                peak = "peak_gib" if device is META else "measured_gib"
                rows[-1] |= {"weights_gib": sum(weights) / 2**30, peak: (sum(weights) + max(activations)) / 2**30}
    return {"rows": rows}


def component_needs(part: Component, canvas: Canvas, device: torch.device) -> tuple[int, int]:
    """Bytes of the weights, and of the activations at their peak."""
    model = build_full_size(part, device)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if device is META:
        with torch.inference_mode(), _FusedAttention(), LiveMemory() as live:
            part.run(model, canvas, META)
        return weights, live.peak
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        part.run(model, canvas, device)
    return weights, torch.cuda.max_memory_allocated() - before


def build_full_size(part: Component, device: torch.device) -> Model:
    """The component in the dtype that it has on a GPU, its weights uninitialised."""
    config = load_config(part.config)
    if "z_dim" in config:  # statistics do not change the memory
        config = {"latents_mean": [0.0] * config["z_dim"], "latents_std": [1.0] * config["z_dim"], **config}
    dtype = component_dtype(part.name, FastVideoArgs(model_path=""), torch.device("cuda"))
    model = build_model(resolve_model(part.class_name), config, device, dtype)
    if device is META:
        select_attention_backends(model, torch.device("cpu"), dtype, "TORCH_SDPA")
    return model


def load_config(name: str) -> dict[str, Any]:
    """The full-size config of that name, of those that come with the package."""
    config: dict[str, Any] = json.loads((files("fastvideo.data") / "configs" / f"{name}.json").read_text())
    return config


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors made under it that live: ``now``, and the ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in known | self._seen:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    """Attention on the meta device as a fused kernel does it: without the matrix of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value, *_ = args
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def _texts(num_tokens: int, **options: Any) -> Call:
    """A call of a text encoder with as many rows of that length as an encode job gives it."""

    def run(model: Any, canvas: Canvas, device: torch.device) -> object:
        shape = (max(1, 2048 // num_tokens), num_tokens)
        ids, mask = (torch.ones(shape, dtype=torch.long, device=device) for _ in range(2))
        return model(ids, mask, **options)

    return run


def _look(model: Any, canvas: Canvas, device: torch.device) -> object:
    size = model.config.image_size
    return model(torch.zeros(1, 3, size, size, dtype=model.dtype, device=device), skip_layers=1)


def _encode_video(model: Any, canvas: Canvas, device: torch.device) -> object:
    """The image and empty frames after it, as image-to-video conditions on them."""
    return model.encode(torch.zeros(1, 3, canvas.num_frames, canvas.height, canvas.width, device=device))


def _encode_image(model: Any, canvas: Canvas, device: torch.device) -> object:
    return model.encode(torch.zeros(1, 3, 1, canvas.height, canvas.width, device=device))


def _decode(model: Any, canvas: Canvas, device: torch.device) -> None:
    space, channels = model.spatial_factor, model.post_quant_conv.weight.shape[1]
    for _ in model.decode_stream(_latents(channels, space, canvas, device)):
        pass


def _decode_tiles(model: Any, canvas: Canvas, device: torch.device) -> None:
    model.use_tiling = True
    _decode(model, canvas, device)


def _denoise_wan(model: Any, canvas: Canvas, device: torch.device, space: int = 8) -> None:
    """A guided step: the second branch runs beside all that is kept of the first."""
    config, dtype = model.config, model.dtype
    latents = _latents(config.in_channels, space, canvas, device).to(dtype)
    texts = [torch.zeros(1, WAN_TEXT_TOKENS, config.text_dim, dtype=dtype, device=device) for _ in range(2)]
    image = None
    if config.image_dim is not None:
        image = torch.zeros(1, WAN_IMAGE_TOKENS, config.image_dim, dtype=dtype, device=device)
    timestep = torch.full((1,), 637, device=device)
    model.kept_states = KeptStates((*texts, image), len(texts))
    model.kept_states.begin_step(model, latents, timestep)
    for text in texts:
        model(latents, text, timestep, image)


def _denoise_residual(model: Any, canvas: Canvas, device: torch.device) -> None:
    _denoise_wan(model, canvas, device, space=16)


def _denoise_hunyuan(model: Any, canvas: Canvas, device: torch.device) -> object:
    config, dtype = model.config, model.dtype
    text = torch.zeros(1, 256, config.text_embed_dim, dtype=dtype, device=device)
    pooled = torch.zeros(1, config.pooled_projection_dim, dtype=dtype, device=device)
    timestep, guidance = (torch.full((1,), value, device=device) for value in (637.0, 6000.0))
    return model(_latents(config.in_channels, 8, canvas, device).to(dtype), [text, pooled], timestep, None, guidance)


def _latents(channels: int, space: int, canvas: Canvas, device: torch.device) -> torch.Tensor:
    frames = (canvas.num_frames - 1) // 4 + 1
    return torch.zeros(1, channels, frames, canvas.height // space, canvas.width // space, device=device)


_UMT5 = Component(Phase.ENCODE, "text_encoder", "umt5_xxl_encoder", "UMT5EncoderModel", _texts(WAN_TEXT_TOKENS))
_WAN_DECODER = Component(Phase.DECODE, "vae", "wan_vae", "AutoencoderKLWan", _decode)


def _transformer(config: str, run: Call = _denoise_wan) -> Component:
    return Component(Phase.DENOISE, "transformer", config, "WanTransformer3DModel", run)


SYSTEMS = {
    "wan21_t2v_1.3B": System(Canvas(480, 832, 81), (_UMT5, _transformer("wan21_t2v_1.3B"), _WAN_DECODER)),
    "wan21_t2v_14B": System(Canvas(720, 1280, 81), (_UMT5, _transformer("wan21_t2v_14B"), _WAN_DECODER)),
    "wan21_i2v_14B": System(
        Canvas(720, 1280, 81),
        (
            _UMT5,
            Component(Phase.ENCODE, "image_encoder", "clip_vit_h_vision", "CLIPVisionModel", _look),
            Component(Phase.ENCODE, "vae", "wan_vae", "AutoencoderKLWan", _encode_video),
            _transformer("wan21_i2v_14B"),
            _WAN_DECODER,
        ),
    ),
    "wan22_ti2v_5B": System(
        Canvas(704, 1280, 121),
        (
            _UMT5,
            Component(Phase.ENCODE, "vae", "wan22_vae", "AutoencoderKLWan", _encode_image),
            _transformer("wan22_ti2v_5B", _denoise_residual),
            Component(Phase.DECODE, "vae", "wan22_vae", "AutoencoderKLWan", _decode),
        ),
    ),
    "hunyuanvideo_13B": System(
        Canvas(720, 1280, 129),
        (
            Component(Phase.ENCODE, "text_encoder", "llama3_8b", "LlamaModel", _texts(351, skip_layers=2)),
            Component(Phase.ENCODE, "text_encoder_2", "clip_l_text", "CLIPTextModel", _texts(77)),
            Component(
                Phase.DENOISE, "transformer", "hunyuanvideo_13B", "HunyuanVideoTransformer3DModel", _denoise_hunyuan
            ),
            Component(Phase.DECODE, "vae", "hunyuan_vae", "AutoencoderKLHunyuanVideo", _decode_tiles),
        ),
    ),
}
