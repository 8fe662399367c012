"""The transformers that can be timed at full size: random weights and inputs, our call and the peer's."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import torch

from fastvideo.v1.models.base import Model
from fastvideo.v1.models.dits.workload import HUNYUAN_TEXT_TOKENS, WAN_TEXT_TOKENS
from fastvideo.v1.models.loader.component import build_model
from fastvideo.v1.models.loader.weights import assign_weights
from fastvideo.v1.models.registry import resolve_model

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Architecture(ABC):
    """One full-size transformer; ``config`` is its ``config.json``."""

    config: dict[str, Any]

    @abstractmethod
    def random_inputs(self, height: int, width: int, num_frames: int, device: torch.device) -> Tensors:
        """What one forward of one video of that many pixels and pixel frames takes."""

    @abstractmethod
    def ours(self, model: Model, inputs: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """One forward of our model."""

    @abstractmethod
    def theirs(self, model: Any, inputs: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """One forward of diffusers' model."""

    @abstractmethod
    def shortened(self, num_layers: int) -> "Architecture":
        """The same at full width with no more than ``num_layers`` blocks of each kind."""

    def random_weights(self, device: torch.device) -> Tensors:
        """A bfloat16 state dict in the checkpoint's names, drawn as diffusers initialises its modules."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(device):
                return dict(self._peer_class().from_config(self.config).state_dict())
        finally:
            torch.set_default_dtype(default)

    def our_model(self, weights: Tensors, device: torch.device, dtype: torch.dtype) -> Model:
        """Our model with ``weights`` in ``dtype``."""
        model = build_model(resolve_model(self.config["_class_name"]), self.config, device, dtype)
        assign_weights(model, (("random weights", key, tensor) for key, tensor in weights.items()), "random weights")
        return model

    def their_model(self, weights: Tensors) -> Any:
        """diffusers' model on the same ``weights``, which it does not copy."""
        with torch.device("meta"):
            peer = self._peer_class().from_config(self.config)
        rope = self.shortened(0)._peer_rope()
        peer.load_state_dict(weights, assign=True, strict=True)
        peer.rope = rope.to(next(iter(weights.values())).device)
        return peer.eval()

    def _peer_class(self) -> Any:
        import diffusers

        return getattr(diffusers, self.config["_class_name"])

    def _peer_rope(self) -> Any:
        return self._peer_class().from_config(self.config).rope


class WanArchitecture(Architecture):
    """Wan2.1 text-to-video: 512 text tokens, a quarter of them real, the rest zero padding that is attended."""

    TEXT_TOKENS = WAN_TEXT_TOKENS

    def random_inputs(self, height: int, width: int, num_frames: int, device: torch.device) -> Tensors:
        text = torch.randn(1, self.TEXT_TOKENS, self.config["text_dim"], device=device)
        text[:, self.TEXT_TOKENS // 4 :] = 0
        return {
            "latents": _latents(self.config, height, width, num_frames, device),
            "text": text,
            "timestep": torch.full((1,), 637, device=device),
        }

    def ours(self, model: Model, inputs: Tensors, dtype: torch.dtype) -> torch.Tensor:
        return model(inputs["latents"].to(dtype), inputs["text"].to(dtype), inputs["timestep"])

    def theirs(self, model: Any, inputs: Tensors, dtype: torch.dtype) -> torch.Tensor:
        return model(inputs["latents"].to(dtype), inputs["timestep"], inputs["text"].to(dtype), return_dict=False)[0]

    def shortened(self, num_layers: int) -> "WanArchitecture":
        return WanArchitecture({**self.config, "num_layers": min(num_layers, self.config["num_layers"])})

    def their_model(self, weights: Tensors) -> Any:
        peer = super().their_model(weights)
        for name, module in peer.named_modules():
            if name.rpartition(".")[2] in ("time_embedder", "norm2"):
                module.float()
            if "scale_shift_table" in module._parameters:
                module.scale_shift_table.data = module.scale_shift_table.data.float()
        return peer


class HunyuanVideoArchitecture(Architecture):
    """HunyuanVideo text-to-video: 256 text tokens, 90 of them real; ours are without the padding, which is masked."""

    TEXT_TOKENS, REAL_TEXT_TOKENS = 256, HUNYUAN_TEXT_TOKENS

    def random_inputs(self, height: int, width: int, num_frames: int, device: torch.device) -> Tensors:
        mask = torch.arange(self.TEXT_TOKENS, device=device)[None] < self.REAL_TEXT_TOKENS
        return {
            "latents": _latents(self.config, height, width, num_frames, device),
            "text": torch.randn(1, self.TEXT_TOKENS, self.config["text_embed_dim"], device=device),
            "mask": mask.long(),
            "pooled": torch.randn(1, self.config["pooled_projection_dim"], device=device),
            "timestep": torch.full((1,), 637, device=device),
            "guidance": torch.full((1,), 6000.0, device=device),
        }

    def ours(self, model: Model, inputs: Tensors, dtype: torch.dtype) -> torch.Tensor:
        text = [inputs["text"][:, : self.REAL_TEXT_TOKENS].to(dtype), inputs["pooled"].to(dtype)]
        return model(inputs["latents"].to(dtype), text, inputs["timestep"], None, inputs["guidance"])

    def theirs(self, model: Any, inputs: Tensors, dtype: torch.dtype) -> torch.Tensor:
        latents, text, pooled = (inputs[name].to(dtype) for name in ("latents", "text", "pooled"))
        return model(latents, inputs["timestep"], text, inputs["mask"], pooled, inputs["guidance"], return_dict=False)[
            0
        ]

    def shortened(self, num_layers: int) -> "HunyuanVideoArchitecture":
        kinds = ("num_layers", "num_single_layers", "num_refiner_layers")
        return HunyuanVideoArchitecture({**self.config, **{kind: min(num_layers, self.config[kind]) for kind in kinds}})


_ARCHITECTURES: dict[str, type[Architecture]] = {
    "HunyuanVideoTransformer3DModel": HunyuanVideoArchitecture,
    "WanTransformer3DModel": WanArchitecture,
}


def load_architecture(name: str) -> Architecture:
    """The architecture of ``fastvideo/data/configs/<name>.json``."""
    folder = files("fastvideo.data") / "configs"
    if not (folder / f"{name}.json").is_file():
        known = sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))
        raise ValueError(f"no architecture {name!r}; there are: {', '.join(known)}")
    return architecture_of(folder / f"{name}.json")


def architecture_of(file: Traversable) -> Architecture:
    """That of a transformer's ``config.json``; raises ``ValueError`` for a class that is none of ours."""
    config = json.loads(file.read_text())
    if config.get("_class_name") not in _ARCHITECTURES:
        raise ValueError(f"{file.name!r} is no diffusion transformer")
    return _ARCHITECTURES[config["_class_name"]](config)


def _latents(config: dict[str, Any], height: int, width: int, num_frames: int, device: torch.device) -> torch.Tensor:
    return torch.randn(1, config["in_channels"], (num_frames - 1) // 4 + 1, height // 8, width // 8, device=device)
