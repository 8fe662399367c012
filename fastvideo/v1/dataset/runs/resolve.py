"""From a config to the run it names: the model looked at, every setting decided."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from fsspec.core import url_to_fs

from fastvideo.v1.dataset.canonical import digest
from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.layout import run_path
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.runs.fingerprint import fingerprint_adapter, fingerprint_component
from fastvideo.v1.dataset.runs.keys import LORA, SKIP_RULE, TILE_STRATEGY, phase_keys, result_settings
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.describe import PipelineDescription, describe_pipeline
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.sampling_params import SamplingParams

NAME_LENGTH = 12
_PACKAGES = ("fastvideo", "torch", "diffusers", "transformers")


def resolve_run(config: RunConfig, output: Store) -> tuple[Run, PipelineDescription]:
    """The run that ``config`` names, as it is stored or else new and not yet stored, and what its model makes.

    Raises ``ValueError`` for a default size that the model cannot make, for an attention backend that does not exist,
    and for a store other than the run's own.
    """
    description = describe_pipeline(config.engine.model_path)
    sampling = config.sampling.apply(description.default_sampling)
    description.canvas.check(sampling.height, sampling.width, sampling.num_frames)
    _check_backend(config.engine)
    run = _new_run(config, description, sampling, output)
    try:
        stored = Run.from_json(output.read(run_path(run.name)), output)
    except FileNotFoundError:
        return run, description
    if config.store and run.store_uri != stored.store_uri:
        raise ValueError(
            f"store={config.store!r}: run {run.name} keeps its objects in {stored.store_uri or output.uri('')!r}; "
            "leave `store` out or take another output"
        )
    return replace(stored, model_path=run.model_path), description


def _new_run(config: RunConfig, description: PipelineDescription, sampling: SamplingParams, output: Store) -> Run:
    names = [name for components in description.components.values() for name in components]
    root = description.model_root.rstrip("/")
    fingerprints = {name: fingerprint_component(f"{root}/{name}") for name in dict.fromkeys(names)}
    engine = _with_whole_paths(config.engine)
    if engine.lora_path:
        fingerprints[LORA] = fingerprint_adapter(engine.lora_path)
    if engine.sliding_tile_strategy:
        fingerprints[TILE_STRATEGY] = _fingerprint_strategy(engine.sliding_tile_strategy, sampling.num_inference_steps)
    if engine.step_skip_threshold is not None:
        fingerprints[SKIP_RULE] = _fingerprint_skip_rule(engine.step_skip_rule, description)
    keys = phase_keys(description, fingerprints, engine, sampling, config.video)
    identity = {
        "keys": {str(phase): key for phase, key in keys.items()},
        "seed": sampling.seed,
        "negative_prompt": sampling.negative_prompt,
        "repeats": config.repeats,
        "canvas": [sampling.height, sampling.width, sampling.num_frames],
    }
    return Run(
        name=digest(identity, NAME_LENGTH),
        created=datetime.now(UTC).isoformat(),
        model_path=description.model_root,
        pipeline_class=description.pipeline_class,
        input_fields=description.input_fields,
        sampling=sampling,
        repeats=config.repeats,
        video=config.video,
        engine=result_settings(engine),
        keys=keys,
        fingerprints=fingerprints,
        stage_versions=description.stage_versions,
        versions=package_versions(),
        store_uri=Store(config.store).uri("") if config.store else None,
        output=output,
    )


def _with_whole_paths(engine: FastVideoArgs) -> FastVideoArgs:
    """A job may run in another directory than this."""
    whole = {}
    for name in ("lora_path", "sliding_tile_strategy", "step_skip_rule"):
        if uri := getattr(engine, name):
            fs, path = url_to_fs(uri)
            whole[name] = fs.unstrip_protocol(path)
    return replace(engine, **whole)


def _fingerprint_strategy(uri: str, num_steps: int) -> str:
    from fastvideo.v1.attention.strategy import load_strategy

    strategy = load_strategy(uri)
    strategy.check_steps(num_steps)
    return digest(sorted([*place, *windows] for place, windows in strategy.windows.items()), NAME_LENGTH)


def _fingerprint_skip_rule(uri: str | None, description: PipelineDescription) -> str:
    from fastvideo.v1.models.dits.skip_rule import rule_for
    from fastvideo.v1.models.loader.repository import INDEX, ModelRepository
    from fastvideo.v1.models.registry import resolve_model

    repository = ModelRepository(description.model_root)
    config_class = resolve_model(repository.read_json(INDEX)["transformer"][1]).config_class
    config = config_class.from_dict(repository.read_json("transformer/config.json"))
    names = [name for name in description.components[Phase.DENOISE] if name.startswith("transformer")]
    return digest(asdict(rule_for(config, len(names), uri)), NAME_LENGTH)


def _check_backend(engine: FastVideoArgs) -> None:
    from fastvideo.v1.attention.selector import requested_backend

    backend = requested_backend(engine.attention_backend)
    if backend == "SLIDING_TILE_ATTN" and engine.sliding_tile_strategy is None:
        raise ValueError(
            "attention_backend SLIDING_TILE_ATTN needs engine.sliding_tile_strategy, a JSON file of windows"
        )


def package_versions() -> dict[str, str]:
    """The installed versions of the packages on which results depend."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
