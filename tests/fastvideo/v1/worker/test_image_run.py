"""A data-set run whose prompts carry images, phase by phase."""

import json
import random
import signal
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.layout import image_path, input_path, latents_path
from fastvideo.v1.dataset.objects.state_file import unpack_state
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.failures import read_failures
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.publishing.publish import publish
from fastvideo.v1.dataset.publishing.published_rows import published_rows
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.sample import image_input_id
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.stage_job import run_stage_job

# Two prompts share an image; the third has one of its own.
ROWS = [("a red circle", "a.png"), ("a white star", "a.png"), ("a cyan ball", "b.png")]


@pytest.fixture(autouse=True)
def restore_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def config(tmp_path: Path, image_model: str) -> RunConfig:
    for name, gray in zip(("a.png", "b.png"), random.sample(range(256), 2), strict=True):
        Image.new("RGB", (6, 5), (gray, gray, gray)).save(tmp_path / name)
    lines = [json.dumps({"prompt": prompt, "image": image}) for prompt, image in ROWS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    sampling = {"num_inference_steps": 2, "num_frames": 5}
    values = {"prompts": str(tmp_path / "prompts.jsonl"), "output": str(tmp_path / "out"), "model": image_model}
    return parse_config(values | {"sampling": sampling})


def run_phase(config: RunConfig, phase: Phase, **settings) -> Run:
    plan = plan_run(config)
    for shard in write_shards(plan.run, plan.scan, config, 1):
        if shard.phase is phase:
            worker = GPUWorker(FastVideoArgs(device="cpu", model_path=config.engine.model_path), [phase])
            run_stage_job(plan.run, phase, shard.path, worker, JobSettings(**settings))
    return plan.run


def test_a_shared_image_is_encoded_once_and_reaches_each_sample(config, capsys):
    for phase in Phase:
        run = run_phase(config, phase)
    assert [(s.total, s.done) for s in scan(run).values()] == [(3 + 1 + 2, 6), (3, 3), (3, 3)]
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["committed"] for e in events if e["event"] == "done"] == [4, 2, 3, 3], "texts, images, latents, videos"
    size = run.sampling.height, run.sampling.width, run.sampling.num_frames
    for sample, (_, name) in zip(run.iter_samples(), ROWS, strict=True):
        path = input_path(run.keys[Phase.ENCODE], image_input_id(sample.image, *size))
        tensors, _ = unpack_state(run.objects.read(path), path)
        gray = Image.open(Path(config.prompts).parent / name).getpixel((0, 0))[0]
        assert set(tensors) == {"custom.tint"} and float(tensors["custom.tint"]) == pytest.approx(gray / 255)


def test_the_image_shapes_the_latents(config):
    for phase in (Phase.ENCODE, Phase.DENOISE):
        run = run_phase(config, phase)
    first = Path(config.prompts).parent / "b.png"
    first.write_bytes((first.parent / "a.png").read_bytes())
    for phase in (Phase.ENCODE, Phase.DENOISE):
        run = run_phase(config, phase)
    old, new = (sample for sample in run.iter_samples() if sample.prompt == ROWS[2][0])
    assert old.seed == new.seed and old.id != new.id
    made = [
        unpack_state(run.objects.read(latents_path(run.keys[Phase.DENOISE], sample.id)), sample.id)[0]["latents"]
        for sample in (old, new)
    ]
    difference = made[1] - made[0]
    assert difference.abs().max() > 0 and difference.std() < 1e-5, "one tint in place of another"


def test_a_run_ends_well_when_the_sources_are_gone(config):
    run_phase(config, Phase.ENCODE)
    for image in Path(config.prompts).parent.glob("*.png"):
        image.unlink()
    for info in plan_run(config).run.objects.list("encode"):
        plan_run(config).run.objects.delete(info.path)
    for phase in Phase:
        run = run_phase(config, phase)
    assert [(s.missing, s.failed) for s in scan(run).values()] == [(0, 0)] * 3


def test_a_kept_image_that_is_damaged_is_put_aside_and_kept_again(config, capsys):
    run = plan_run(config).run
    sample = next(run.iter_samples())
    kept = Path(run.objects.uri(image_path(sample.image)))
    data = kept.read_bytes()
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    plan = plan_run(config)
    capsys.readouterr()
    run_phase(config, Phase.ENCODE)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len([event for event in events if event["event"] == "damaged"]) == 1
    assert not kept.exists() and scan(plan.run)[Phase.ENCODE].missing == 1
    run = run_phase(config, Phase.ENCODE)
    assert kept.read_bytes() == data and scan(run)[Phase.ENCODE].missing == 0


def test_a_failed_image_blocks_its_own_samples_alone(config, monkeypatch):
    from tests.image_pipeline import TintEncodingStage

    forward = TintEncodingStage.forward
    first = Image.open(Path(config.prompts).parent / "a.png").getpixel((0, 0))[0]

    def poisoned(self, batch, fastvideo_args):
        if int(batch.image[0][0, 0, 0]) == first:
            raise ValueError("this image is too beautiful")
        return forward(self, batch, fastvideo_args)

    monkeypatch.setattr(TintEncodingStage, "forward", poisoned)
    run = run_phase(config, Phase.ENCODE, tries=2)
    (failure,) = read_failures(run, Phase.ENCODE)
    assert "too beautiful" in failure["error"] and failure["attempts"] == 2
    state = scan(run)
    assert (state[Phase.ENCODE].failed, state[Phase.DENOISE].blocked, state[Phase.DENOISE].missing) == (1, 2, 1)


def test_published_rows_tell_the_image(config):
    for phase in Phase:
        run = run_phase(config, phase)
    publish(run)
    rows = [row for batch in published_rows(run) for row in batch.to_pylist()]
    for row, (_, name) in zip(rows, ROWS, strict=True):
        kept = Path(config.output) / row["image_path"]
        assert kept.read_bytes() == (Path(config.prompts).parent / name).read_bytes()
        assert kept.name == row["image_sha256"]
    seconds = {row["id"]: row["seconds"] for row in read_ledger(run, Phase.ENCODE).to_pylist()}
    table = pa.Table.from_batches(run.iter_batches())
    needed = zip(table["input_id"].to_pylist(), table["image_input_id"].to_pylist(), strict=True)
    assert [row["encode_seconds"] for row in rows] == [seconds[text] + seconds[image] for text, image in needed]
