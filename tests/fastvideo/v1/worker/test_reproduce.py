"""A sample made again: equal to the byte where that is promised, close elsewhere, told apart where it is neither."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastvideo.v1.dataset.config import parse_config
from fastvideo.v1.dataset.layout import input_path, latents_path, video_path
from fastvideo.v1.dataset.objects.state_file import pack_state, unpack_state
from fastvideo.v1.dataset.objects.video import VideoWriter, iter_frames
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker import reproduce as reproduce_module
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.reproduce import NOT_STORED, Reproduction, reproduce
from fastvideo.v1.worker.stage_job import run_stage_job

ROWS = ['{"prompt": "a red circle moves left", "guidance": 2}', '{"prompt": "white star grows", "steps": 3}']


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two samples as jobs make them, of which a test may change the second."""
    before = signal.getsignal(signal.SIGTERM)
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "prompts.jsonl").write_text("\n".join(ROWS))
    values = {"prompts": str(folder / "prompts.jsonl"), "output": str(folder / "out"), "engine": {"device": "cpu"}}
    config = parse_config({**values, "sampling": {"num_inference_steps": 2}})
    planned = plan_run(config)
    for shard in write_shards(planned.run, planned.scan, config, 0):
        worker = GPUWorker(FastVideoArgs(device="cpu"), [shard.phase])
        run_stage_job(planned.run, shard.phase, shard.path, worker, JobSettings())
    yield planned.run
    signal.signal(signal.SIGTERM, before)


def ids(run: Run) -> list[str]:
    return [sample.id for sample in run.iter_samples()]


def make_again(run: Run, id: str) -> Reproduction:
    return reproduce(run, id, {"device": "cpu"})


def likeness(made: Reproduction) -> dict[Phase, list[bool]]:
    return {phase: [each.is_equal for each in made.comparisons if each.phase is phase] for phase in Phase}


def test_a_sample_is_made_again_to_the_byte(run: Run) -> None:
    stored = {info: run.output.read(info.path) for info in run.output.list("")}
    made = make_again(run, ids(run)[0][:8])
    assert (made.id, made.prompt, made.differences) == (ids(run)[0], "a red circle moves left", ())
    assert likeness(made) == {Phase.ENCODE: [True, True], Phase.DENOISE: [True], Phase.DECODE: [True]}
    assert made.is_reproduced() and made.seconds > 0
    assert stored == {info: run.output.read(info.path) for info in run.output.list("")}, "nothing is written to the run"


def test_another_result_is_told_by_how_far_it_is(run: Run) -> None:
    id = ids(run)[1]
    latents, video = latents_path(run.keys[Phase.DENOISE], id), video_path(run.keys[Phase.DECODE], id)
    tensors, scalars = unpack_state(run.objects.read(latents), latents)
    run.objects.overwrite(latents, pack_state({name: 1.01 * value for name, value in tensors.items()}, scalars))
    run.objects.overwrite(video, _with_noise(run, run.objects.read(video), deviation=2))
    negative = next(run.iter_batches())["negative_input_id"][0].as_py()
    run.objects.delete(input_path(run.keys[Phase.ENCODE], negative))
    made = make_again(replace(run, versions={**run.versions, "torch": "2.0"}), id)
    prompt, negative, denoise, decode = made.comparisons
    assert prompt.is_equal and negative.why_not == NOT_STORED
    assert denoise.error == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert decode.psnr == pytest.approx(20 * np.log10(255 / 2), abs=3)  # noise of two levels, and the codec's own
    assert made.is_missing and not made.is_reproduced()
    assert len(made.differences) == 1 and made.differences[0].startswith("torch was 2.0, here ")
    elsewhere = replace(made, comparisons=(prompt, denoise, decode))
    assert elsewhere.is_reproduced() and not elsewhere.is_reproduced(lowest_psnr=60.0)
    assert not replace(elsewhere, differences=()).is_reproduced(), "there it has to be equal to the byte"


def test_another_backend_or_layout_is_a_difference_where_the_ledger_tells_of_it(run: Run, monkeypatch) -> None:
    id, here = ids(run)[0], "cpu (SDPA)"
    assert not list(reproduce_module._differences(run, id, here))
    for device, differs in {"cpu": False, "cpu (SDPA, ulysses=2)": True, "cpu (FlashAttention)": True}.items():
        ledger = pa.table({"id": [id], "device": [device]})
        monkeypatch.setattr(reproduce_module, "read_ledger", lambda run, phase, ledger=ledger: ledger)
        expected = [f"made on {device}, here on {here}"] if differs else []
        assert list(reproduce_module._differences(run, id, here)) == expected


def test_what_cannot_be_made_again_is_said(run: Run, tiny_wan: str) -> None:
    with pytest.raises(ValueError, match=f"'' is the beginning of 2 ids of run {run.name}"):
        make_again(run, "")
    with pytest.raises(ValueError, match="'zz' is no sample of run"):
        make_again(run, "zz")
    with pytest.raises(ValueError, match=f"is not what run {run.name} was made with; name its model with --model"):
        make_again(replace(run, model_path=tiny_wan), ids(run)[0])


def _with_noise(run: Run, video: bytes, deviation: float) -> bytes:
    import tempfile
    from io import BytesIO

    frames = np.stack(list(iter_frames(BytesIO(video))))
    noisy = (
        np.clip(frames + np.random.default_rng().normal(0, deviation, frames.shape), 0, 255).round().astype(np.uint8)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "noisy.mp4")
        with VideoWriter(path, frames.shape[2], frames.shape[1], run.sampling.fps, replace(run.video, crf=1)) as writer:
            writer.write(noisy)
        return path.read_bytes()
