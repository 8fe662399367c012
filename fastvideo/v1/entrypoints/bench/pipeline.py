"""`fastvideo bench pipeline`: a denoise shard through the real stage job, from the start of its process."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.layout import input_path
from fastvideo.v1.dataset.objects.state_file import pack_state
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.sample import input_id
from fastvideo.v1.dataset.waves.shards import Shard, write_shards
from fastvideo.v1.entrypoints.bench.checkpoint import write_checkpoint
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.sampling_params import SamplingOverrides
from fastvideo.v1.worker.torchrun import launch

_JOB = "fastvideo.v1.entrypoints.bench.metered_job"
TEXT_TOKENS = 90
# What is reported, and what it is to stay under.
_AIMS = {
    "loaded_seconds": None,
    "first_step_seconds": 60.0,
    "samples": None,
    "samples_per_hour": None,
    "of_ideal": 0.98,
    "forwards": None,
    "forward_ms": None,
    "wall_seconds": None,
    "idle_share": 0.01,
    "gap_in_sample_ms": None,
    "gap_between_samples_ms": None,
}


def bench_pipeline(
    model: str,
    num_samples: int,
    num_layers: int | None,
    sampling: Mapping[str, Any],
    folder: str | None,
    num_gpus: Sequence[int] = (1,),
) -> dict[str, Any]:
    """Seconds from the start of a denoise job's processes to the first step, and the devices' idle share thereafter.

    ``model`` is a transformer of ``fastvideo/data/configs``, of which a checkpoint with random weights is written, or a
    model directory. ``num_layers`` cuts it down, ``sampling`` is the request, ``folder`` where all is written. Texts
    are random embeddings. A job has each of ``num_gpus`` in turn, ``num_samples`` a GPU, at least 2: the first of a GPU
    counts neither into the idle share nor into the samples an hour. ``of_ideal`` is their number over what the first
    job's would be on as many GPUs.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples={num_samples} must be at least 2: the first one warms up")
    rows: list[dict[str, Any]] = []
    hourly: dict[int, float] = {}
    with checkpoint(model, num_layers, folder) as (root, weights):
        for count in num_gpus:
            run, shard = plan_shard(root, root.parent / f"gpus-{count}", count * num_samples, sampling)
            figures = _together(run_metered(run, shard, {"num_gpus": count}))
            hourly[count] = figures["samples_per_hour"]
            figures["of_ideal"] = hourly[count] / (count / num_gpus[0] * hourly[num_gpus[0]])
            rows += [{"gpus": count, "figure": name, "value": figures[name], "aim": aim} for name, aim in _AIMS.items()]
    request = run.sampling
    return {
        "job_device": figures["device"],
        "model": model if num_layers is None else f"{model}, {num_layers} layers",
        "canvas": [request.num_frames, request.height, request.width],
        "steps": request.num_inference_steps,
        "weights_gib": weights / 2**30,
        "rows": rows,
    }


@contextmanager
def checkpoint(model: str, num_layers: int | None, folder: str | None) -> Iterator[tuple[Path, int]]:
    """The model directory in a folder for the time, and the bytes of the weights that were written for it."""
    with TemporaryDirectory(prefix="fastvideo-bench-", dir=folder) as scratch:
        root = Path(scratch) / "model"
        if not Path(model).is_dir():
            yield root, write_checkpoint(root, model, num_layers)
            return
        if num_layers is not None:
            raise ValueError(f"num_layers={num_layers} is for random weights; {model!r} is a model directory")
        root.symlink_to(Path(model).absolute())
        yield root, 0


def plan_shard(root: Path, scratch: Path, num_samples: int, sampling: Mapping[str, Any]) -> tuple[Run, Shard]:
    """A run of so many prompts whose texts are encoded, at random, and its denoise shard, in the new folder."""
    scratch.mkdir()
    prompts = scratch / "prompts.txt"
    prompts.write_text("".join(f"scene {number}\n" for number in range(num_samples)))
    config = RunConfig(
        prompts=str(prompts),
        output=str(scratch / "output"),
        engine=FastVideoArgs(model_path=str(root)),
        sampling=SamplingOverrides(**sampling),
        shard_size=num_samples,
    )
    run = plan_run(config).run
    transformer = json.loads((root / "transformer/config.json").read_text())
    texts = {sample.prompt for sample in run.iter_samples()} | {run.sampling.negative_prompt}
    for text in texts:
        id = input_id({"prompt": text})
        run.objects.create(input_path(run.keys[Phase.ENCODE], id), pack_state(_random_text(transformer), {}))
    (shard,) = (shard for shard in write_shards(run, scan(run), config, 0) if shard.phase is Phase.DENOISE)
    return run, shard


def _random_text(transformer: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What the encode phase hands on of a text of middling length."""
    width = transformer.get("text_dim") or transformer["text_embed_dim"]
    limit = 512 if "text_dim" in transformer else 256
    mask = (torch.arange(limit) < TEXT_TOKENS).long()
    found = {"prompt_embeds": torch.randn(TEXT_TOKENS, width), "prompt_mask": mask}
    if "pooled_projection_dim" in transformer:
        found["pooled_prompt_embeds"] = torch.randn(transformer["pooled_projection_dim"])
    return found


def run_metered(
    run: Run,
    shard: Shard,
    engine: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    listener: Callable[[dict[str, Any]], None] = lambda event: None,
) -> list[dict[str, Any]]:
    """Walks the shard in a job of ``engine.num_gpus`` processes; returns what each said of itself.

    ``listener`` gets the events as they come. Raises ``JobFailed``, or ``RuntimeError`` when samples were not made.
    """
    events: list[dict[str, Any]] = []

    def take(event: dict[str, Any]) -> None:
        events.append(event)
        listener(event)

    arguments = ["--output", run.output.uri(""), "--run", run.name, "--shard", shard.path]
    arguments += ["--engine", json.dumps(dict(engine)), "--settings", json.dumps(dict(settings or {}))]
    output: list[str] = []
    launch(_JOB, arguments, nproc=engine["num_gpus"], log=output.append, on_event=take)
    committed = sum(event["event"] == "committed" for event in events)
    if committed != shard.count:
        raise RuntimeError(f"{committed} of {shard.count} samples were made: {' '.join(output)[-2000:]}")
    return [event for event in events if event["event"] == "metered"]


def _together(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The slowest rank's times, and the samples of all."""
    found: dict[str, Any] = {"device": ranks[0]["device"]}
    for name in ("loaded_seconds", "first_step_seconds", "wall_seconds", "idle_share"):
        found[name] = max(rank[name] for rank in ranks)
    for name in ("forward_ms", "gap_in_sample_ms", "gap_between_samples_ms"):
        found[name] = statistics.mean(rank[name] for rank in ranks)
    for name in ("samples", "forwards"):
        found[name] = sum(rank[name] for rank in ranks)
    return found | {"samples_per_hour": 3600 * found["samples"] / found["wall_seconds"]}
