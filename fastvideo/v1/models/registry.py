"""Which class serves which name in a checkpoint's ``model_index.json``.

A user's own model joins through :func:`register_model`; nothing registers itself at import.
"""

from importlib import import_module
from typing import Any

from fastvideo.v1.plugins import load_plugins

_MODELS = {
    "HunyuanVideoTransformer3DModel": "fastvideo.v1.models.dits.hunyuan:HunyuanVideoTransformer3DModel",
    "WanTransformer3DModel": "fastvideo.v1.models.dits.wan:WanTransformer3DModel",
    "AutoencoderKLWan": "fastvideo.v1.models.vaes.wan:AutoencoderKLWan",
    "AutoencoderKLHunyuanVideo": "fastvideo.v1.models.vaes.hunyuan:AutoencoderKLHunyuanVideo",
    "CLIPTextModel": "fastvideo.v1.models.encoders.clip_text:CLIPTextModel",
    "CLIPVisionModel": "fastvideo.v1.models.encoders.clip_vision:CLIPVisionModel",
    "CLIPVisionModelWithProjection": "fastvideo.v1.models.encoders.clip_vision:CLIPVisionModel",
    "LlamaModel": "fastvideo.v1.models.encoders.llama:LlamaModel",
    "UMT5EncoderModel": "fastvideo.v1.models.encoders.umt5:UMT5EncoderModel",
    "DMDScheduler": "fastvideo.v1.models.schedulers.dmd:DMDScheduler",
    "UniPCMultistepScheduler": "fastvideo.v1.models.schedulers.unipc:UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler": (
        "fastvideo.v1.models.schedulers.flow_match_euler:FlowMatchEulerDiscreteScheduler"
    ),
}


def register_model(class_name: str, location: str) -> None:
    """Serves ``class_name`` of a ``model_index.json`` with ``location``, written ``module:Class``."""
    _MODELS[class_name] = location


def resolve_model(class_name: str) -> Any:
    """The class that serves ``class_name``; an unknown name raises ``ValueError`` with those that are known."""
    return import_class(locate_model(class_name))


def locate_model(class_name: str) -> str:
    """Where that class is, ``module:Class``, without importing it."""
    load_plugins()
    if class_name not in _MODELS:
        raise ValueError(
            f"no model serves {class_name!r}; there are: {', '.join(sorted(_MODELS))} (register_model adds one)"
        )
    return _MODELS[class_name]


def import_class(location: str) -> Any:
    """The class at ``module:Class``."""
    module, _, name = location.partition(":")
    return getattr(import_module(module), name)
