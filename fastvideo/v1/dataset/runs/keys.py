"""The key of each phase: a hash of all that makes its results, and of nothing else."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastvideo.v1.dataset.canonical import digest
from fastvideo.v1.dataset.config import VideoConfig
from fastvideo.v1.fastvideo_args import FastVideoArgs, attention_backend_name
from fastvideo.v1.pipelines.describe import PipelineDescription
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.sampling_params import SamplingParams

KEY_LENGTH = 16
LORA = "lora"
TILE_STRATEGY = "sliding_tile_strategy"
SKIP_RULE = "step_skip_rule"
QUANTIZATION_VERSION = 2  # to be raised when results of 8-bit products change; in the keys of their runs alone
TILED_ENCODE_VERSION = 2  # likewise, of images encoded in tiles
EXACT_BACKENDS = frozenset({"FLASH_ATTN", "TORCH_SDPA"})
_ENGINE_FIELDS = {
    Phase.ENCODE: ("text_encoder_precision",),
    Phase.DENOISE: ("precision", "quantization", "attention_backend"),
    Phase.DECODE: ("vae_precision", "vae_tiling"),
}
_SAMPLING_FIELDS = {
    Phase.ENCODE: (),
    Phase.DENOISE: (
        "height",
        "width",
        "num_frames",
        "num_inference_steps",
        "guidance_scale",
        "guidance_mode",
        "guidance_scale_2",
        "flow_shift",
    ),
    Phase.DECODE: ("fps",),
}


def sampling_fields(phase: Phase) -> tuple[str, ...]:
    """The sampling parameters in a phase's key."""
    return _SAMPLING_FIELDS[phase]


def engine_fields(phase: Phase) -> tuple[str, ...]:
    """Those of :func:`result_settings` that may be in a phase's key."""
    denoise = ("lora_path", "lora_scale", TILE_STRATEGY, "step_skip_threshold", SKIP_RULE)
    return _ENGINE_FIELDS[phase] + (denoise if phase is Phase.DENOISE else ())


def result_settings(engine: FastVideoArgs) -> dict[str, Any]:
    """The process settings that shape results.

    An attention backend that the environment names counts as one of ``engine``. The exact ones that are built in count
    as none; any other is its own setting, whatever it says of itself.
    """
    values = {name: getattr(engine, name) for names in _ENGINE_FIELDS.values() for name in names}
    values |= {"lora_path": engine.lora_path, "lora_scale": engine.lora_scale if engine.lora_path else None}
    values[TILE_STRATEGY] = engine.sliding_tile_strategy
    values |= {"step_skip_threshold": engine.step_skip_threshold, SKIP_RULE: engine.step_skip_rule}
    backend = attention_backend_name(engine.attention_backend)
    return values | {"attention_backend": None if backend in EXACT_BACKENDS else backend}


def phase_keys(
    description: PipelineDescription,
    fingerprints: Mapping[str, str],
    engine: FastVideoArgs,
    sampling: SamplingParams,
    video: VideoConfig,
) -> dict[Phase, str]:
    """The keys, each with the one before in it.

    ``fingerprints`` maps the components' names, and ``LORA``, ``TILE_STRATEGY`` and ``SKIP_RULE`` if ``engine`` has an
    adapter, a strategy of sliding tiles or step skipping; their paths are in no key.
    """
    settings = result_settings(engine)
    keys: dict[Phase, str] = {}
    previous = ""
    for phase in ALL_PHASES:
        made_by: dict[str, Any] = {
            "previous": previous,
            "pipeline": description.pipeline_class,
            "components": {name: fingerprints[name] for name in description.components[phase]},
            "stages": dict(description.stage_versions[phase]),
            "settings": dict(description.settings[phase]),
            "engine": {name: settings[name] for name in _engine_fields(description, phase)},
            "sampling": {name: getattr(sampling, name) for name in _SAMPLING_FIELDS[phase]},
            "video": asdict(video) if phase is Phase.DECODE else None,
        }
        if phase is Phase.ENCODE and made_by["engine"].get("vae_tiling"):
            made_by["tiled_encode_version"] = TILED_ENCODE_VERSION
        if phase is Phase.DENOISE and engine.lora_path:
            made_by[LORA] = [fingerprints[LORA], engine.lora_scale]
        if phase is Phase.DENOISE and engine.quantization:
            made_by["quantization_version"] = QUANTIZATION_VERSION
        if phase is Phase.DENOISE and engine.sliding_tile_strategy:
            made_by[TILE_STRATEGY] = fingerprints[TILE_STRATEGY]
        if phase is Phase.DENOISE and engine.step_skip_threshold is not None:
            made_by["step_skipping"] = [fingerprints[SKIP_RULE], engine.step_skip_threshold]
        previous = keys[phase] = digest(made_by, KEY_LENGTH)
    return keys


def _engine_fields(description: PipelineDescription, phase: Phase) -> tuple[str, ...]:
    """The process settings that shape results of ``phase``; image-to-video models use the VAE to encode, too."""
    encodes_latents = phase is Phase.ENCODE and "vae" in description.components[phase]
    return _ENGINE_FIELDS[phase] + (_ENGINE_FIELDS[Phase.DECODE] if encodes_latents else ())
