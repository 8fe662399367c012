"""The config of a data-set run: what is made, and how the work is cut."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import fsspec
import yaml

from fastvideo.data import PROMPT_LISTS
from fastvideo.v1.distributed.choice import Goal
from fastvideo.v1.fastvideo_args import FastVideoArgs, setting
from fastvideo.v1.form import form
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.sampling_params import SamplingOverrides
from fastvideo.v1.shown_text import check_no_secrets, without_secrets

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
_PROMPTS = f"URI of the prompts (txt, jsonl, csv, parquet, Arrow) or a packaged list: {', '.join(PROMPT_LISTS)}"


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How frames become a file; frames a second belong to the sampling parameters."""

    __pydantic_config__ = form("Video file", "How frames become a file.")

    codec: Literal["h264"] = setting("h264", "Video codec; h264 plays in every browser")
    crf: int = setting(
        18,
        "Constant rate factor: 18 is visually lossless, 51 the worst; 0 is lossless, which few players show",
        ge=0,
        le=51,
    )
    preset: Preset = setting("medium", "Speed of the encoder against the size of its files")


@dataclass(frozen=True, kw_only=True)
class PoolsConfig:
    """Where waves run: Prefect deployments of `run_wave`, each on a work pool. A phase's own goes before `wave`."""

    __pydantic_config__ = form(
        "Work pools",
        "Where waves run: deployments of run-wave, each on a work pool. Empty: in the process of the run itself.",
    )

    wave: str | None = setting(
        None, "Deployment that waves run on, FLOW/NAME (run-wave/gpu); without one they run in this process"
    )
    encode: str | None = setting(None, "Another deployment for encoding, on small GPUs say")
    denoise: str | None = setting(None, "Another deployment for denoising, on large GPUs say")
    decode: str | None = setting(None, "Another deployment for decoding")
    in_flight: int = setting(2, "Waves at once, each a flow run on a pool", ge=1, le=64)

    def __post_init__(self) -> None:
        missing = [phase for phase in ALL_PHASES if self.deployment(phase) is None]
        if 0 < len(missing) < len(ALL_PHASES):
            raise ValueError(f"pools.{missing[0]} has no deployment; set it, or pools.wave for every phase")

    def deployment(self, phase: Phase) -> str | None:
        """The deployment that runs a phase; None: this process does."""
        return getattr(self, phase) or self.wave

    @property
    def are_used(self) -> bool:
        """Whether waves run on pools, and not in this process."""
        return self.deployment(Phase.DENOISE) is not None

    @property
    def num_waves(self) -> int:
        """Waves at work at once: one where they run in this process."""
        return self.in_flight if self.are_used else 1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. The first group decides results and so names the run; the second never changes a result or a key."""

    __pydantic_config__ = form(
        "Data set", "What is made, and how the work is cut. Only prompts and output must be given."
    )

    prompts: str = field(metadata={"description": _PROMPTS})
    output: str = field(metadata={"description": "URI of the data set: runs, tables, and objects unless `store`"})
    store: str | None = setting(None, "URI of the object folders, if they live elsewhere or are shared")
    engine: FastVideoArgs = setting(FastVideoArgs(), "The model and how it is run; `model` is short for its path")
    sampling: SamplingOverrides = setting(SamplingOverrides(), "What differs from the model's own defaults")
    video: VideoConfig = setting(VideoConfig(), "How frames become a file")
    limit: int | None = setting(None, "Take only the first rows of the prompts, this many", ge=1)
    repeats: int = setting(1, "Videos of each prompt, with different seeds, unless its row says", ge=1)

    text_batch_size: int = setting(256, "Texts given to the encoder, and then committed, together", ge=1)
    text_shard_size: int = setting(4096, "Texts of an encode shard", ge=1)
    image_shard_size: int = setting(512, "Images of an encode shard, each a video to the VAE", ge=1)
    shard_size: int | None = setting(None, "Samples of a denoise shard; without it chosen by measured seconds", ge=1)
    decode_shard_size: int | None = setting(None, "Samples of a decode shard; without it chosen likewise", ge=1)
    wave_size: int = setting(100, "Denoise shards of a wave", ge=1)
    jobs: int = setting(1, "Jobs at once, of each wave", ge=1)
    error_budget: float | None = setting(
        None, "Share of a wave's samples that may fail before the run pauses; without it none pauses", ge=0, le=1
    )
    gpu_limit: str | None = setting(
        None, "Prefect's global concurrency limit of this name counts the GPUs at work on all hosts"
    )
    pools: PoolsConfig = setting(PoolsConfig(), "Work pools that waves run on")
    goal: Goal = setting(
        "throughput", "What layouts are chosen for where `engine` sets none: samples an hour, or latency"
    )
    spread_tail: bool = setting(
        True,
        "Let GPUs that would be idle at the end share the last samples where that is faster; these agree with others' "
        "layouts within rounding, not to the byte",
    )
    gpu_memory: float = setting(
        79.6, "GiB of a GPU, for the choice of layouts: 79.6 for an H100, 140.4 for an H200", ge=1
    )
    tries: int = setting(3, "Attempts at a sample before it counts as failed", ge=1)
    checkpoint_every: int = setting(10, "Denoising steps between saves of a long sample's state; 0 saves none", ge=0)
    rank_timeout: int = setting(600, "Seconds that GPUs of one sample wait for each other before the job ends", ge=1)
    job_timeout: int = setting(4 * 3600, "Seconds after which a job is killed and its shard retried", ge=1)

    def __post_init__(self) -> None:
        for name in ("prompts", "output"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}={getattr(self, name)!r} must be a URI")
        places = {name: getattr(self, name) for name in ("prompts", "output", "store")}
        engine = ("model_path", "lora_path", "sliding_tile_strategy", "step_skip_rule")
        for name, uri in (places | {f"engine.{name}": getattr(self.engine, name) for name in engine}).items():
            check_no_secrets(name, uri)


def load_config(uri: str) -> dict[str, Any]:
    """The mapping of a YAML file, for :func:`parse_config`."""
    try:
        with fsspec.open(uri, "r", encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except FileNotFoundError:
        raise ValueError(f"config {uri!r} does not exist") from None
    except yaml.YAMLError as error:
        raise ValueError(f"config {uri!r} is not YAML: {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"config {uri!r} must be a mapping of keys to values, not a {type(values).__name__}")
    return values or {}


def parse_config(values: Mapping[str, Any], overrides: Mapping[str, str] | None = None) -> RunConfig:
    """The validated config of ``values`` with dotted ``overrides`` (``sampling.num_inference_steps``) laid over it.

    ``model`` is short for ``engine.model_path``. Raises ``ValueError``: one line with key, value and rule.
    """
    merged: dict[str, Any] = {}
    _lay_over(merged, values)
    for key, value in (overrides or {}).items():
        _set_dotted(merged, key.replace("-", "_"), value)
    _check_keys(merged, RunConfig, prefix="")
    for name in ("prompts", "output"):
        if not merged.get(name):
            raise ValueError(f"the config needs a value for {name!r}: --{name} URI")
    return _validate(merged)


def config_values(config: Any) -> dict[str, Any]:
    """What differs from the defaults, as plain values for :func:`parse_config`; a default path is each host's own."""
    values = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            value = config_values(value)
        if value != ({} if is_dataclass(f.type) else f.default):
            values[f.name] = value
    return values


def _lay_over(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key == "model":
            _set_dotted(target, key, value)
        elif isinstance(value, Mapping):
            _lay_over(_section(target, str(key)), value)
        else:
            target[str(key)] = value


def _set_dotted(target: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = ("engine.model_path" if key == "model" else key).split(".")
    for section in sections:
        target = _section(target, section)
    target[name] = value


def _section(target: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(target.get(name), dict):
        target[name] = {}
    return target[name]


def _check_keys(values: Mapping[str, Any], config_class: type, prefix: str) -> None:
    known = {f.name: f.type for f in fields(config_class)}
    for key, value in values.items():
        if key not in known:
            names = [*known, "model"] if not prefix else list(known)
            close = difflib.get_close_matches(key, names, n=1)
            mend = f"did you mean {prefix + close[0]!r}?" if close else f"there are: {', '.join(names)}"
            raise ValueError(f"{prefix + key!r} is no key of the config; {mend}")
        if is_dataclass(section := known[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{prefix + key}={value!r} must be a section with keys of its own")
            _check_keys(value, section, f"{prefix}{key}.")  # type: ignore[arg-type]


def _validate(values: dict[str, Any]) -> RunConfig:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(rule := first.get("ctx", {}).get("error"), ValueError):
            raise ValueError(without_secrets(str(rule))) from None  # a section's own, which says it all
        key = ".".join(str(part) for part in first["loc"])
        value = without_secrets(repr(first["input"]))
        raise ValueError(f"{key}={value}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
