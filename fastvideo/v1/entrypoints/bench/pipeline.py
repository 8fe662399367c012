"""`fastvideo bench pipeline`: a denoise shard through the real stage job, from the start of its process."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.layout import input_path
from fastvideo.v1.dataset.planning import plan_run
from fastvideo.v1.dataset.run import Run
from fastvideo.v1.dataset.sample import input_id
from fastvideo.v1.dataset.scan import scan
from fastvideo.v1.dataset.shards import Shard, write_shards
from fastvideo.v1.dataset.state_file import pack_state
from fastvideo.v1.entrypoints.bench.checkpoint import write_checkpoint
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.sampling_params import SamplingOverrides

TEXT_TOKENS = 90
# What is reported, and what it is to stay under.
_AIMS = {
    "loaded_seconds": None,
    "first_step_seconds": 60.0,
    "samples": None,
    "forwards": None,
    "forward_ms": None,
    "wall_seconds": None,
    "idle_share": 0.01,
    "gap_in_sample_ms": None,
    "gap_between_samples_ms": None,
}


def bench_pipeline(
    model: str, num_samples: int, num_layers: int | None, sampling: Mapping[str, Any], folder: str | None
) -> dict[str, Any]:
    """Seconds from the start of a denoise job's process to its first step, and the device's idle share thereafter.

    ``model`` is a transformer of ``fastvideo/data/configs``, of which a checkpoint with random weights is written, or a
    model directory. ``num_layers`` cuts it down, ``sampling`` is the request, ``folder`` where all is written. Texts
    are random embeddings. The first sample is not counted into the idle share; ``num_samples`` is at least 2.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples={num_samples} must be at least 2: the first one warms up")
    with TemporaryDirectory(prefix="fastvideo-bench-", dir=folder) as scratch:
        root, weights = Path(model), 0
        if not root.is_dir():
            root = Path(scratch) / "model"
            weights = write_checkpoint(root, model, num_layers)
        elif num_layers is not None:
            raise ValueError(f"num_layers={num_layers} is for random weights; {model!r} is a model directory")
        run, shard = _plan(root, Path(scratch), num_samples, sampling)
        figures = _run_job(run, shard)
    request = run.sampling
    return {
        "job_device": figures["device"],
        "model": model if num_layers is None else f"{model}, {num_layers} layers",
        "canvas": [request.num_frames, request.height, request.width],
        "steps": request.num_inference_steps,
        "weights_gib": weights / 2**30,
        "rows": [{"figure": name, "value": figures[name], "aim": aim} for name, aim in _AIMS.items()],
    }


def _plan(root: Path, scratch: Path, num_samples: int, sampling: Mapping[str, Any]) -> tuple[Run, Shard]:
    """A run of so many prompts whose texts are encoded, at random, and its denoise shard."""
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


def _run_job(run: Run, shard: Shard) -> dict[str, Any]:
    """What the job says of itself; raises ``RuntimeError`` with its last words if it fails."""
    command = [sys.executable, "-m", "fastvideo.v1.entrypoints.bench.metered_job"]
    arguments = ["--output", run.output.uri(""), "--run", run.name, "--shard", shard.path]
    job = subprocess.run([*command, *arguments], capture_output=True, text=True)
    events = [json.loads(line) for line in job.stdout.splitlines() if line.startswith("{")]
    metered = [event for event in events if event["event"] == "metered"]
    if job.returncode or not metered:
        raise RuntimeError(f"the denoise job ended with code {job.returncode}: {job.stderr[-2000:]}")
    committed = sum(event["event"] == "committed" for event in events)
    if committed != shard.count:
        raise RuntimeError(f"{committed} of {shard.count} samples were made: {job.stdout[-2000:]}")
    return dict(metered[0])
