"""One process a GPU behind one caller: what it makes, and what becomes of it when a process fails."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker import multiproc_executor
from fastvideo.v1.worker.multiproc_executor import MultiProcExecutor, WorkerFailed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
CANVAS = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 2, "seed": 7}
RING = {"num_gpus": 2, "sp_size": 2, "ring_size": 2, "device": "cpu"}


@pytest.fixture
def faulty_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The embedded weights under ``tests.faulty_pipeline``, which processes started from here find as a plugin."""
    folder = tmp_path / "faulty-model"
    shutil.copytree(EMBEDDED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FaultyPipeline"}))
    info = tmp_path / "site" / "faulty-1.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0.0\n")
    (info / "entry_points.txt").write_text("[fastvideo.plugins]\nfaulty = tests.faulty_pipeline:register\n")
    paths = [str(ROOT), str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return str(folder)


def batch_of(executor: MultiProcExecutor, prompt: str) -> ForwardBatch:
    params = executor.collective_rpc("sampling_defaults")[0].with_overrides(**CANVAS)
    return ForwardBatch(prompt=[prompt], seeds=[params.seed], sampling=params)


def workers_of(pid: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(pid).children() if "fastvideo.v1.worker.worker_process" in p.cmdline()]


def test_a_fault_of_one_rank_ends_the_call_for_all_and_the_next_call_works(faulty_model):
    """Each fault costs a start of two processes, so the last one befalls those of the call before."""
    with MultiProcExecutor(FastVideoArgs(model_path=faulty_model, **RING)) as executor:
        expected = executor.execute_forward(batch_of(executor, "none")).frames
        for fault, error, message in [
            ("raise encode", RuntimeError, "a fault in encode"),  # the other rank waits in a collective
            ("raise decode", RuntimeError, "a fault in decode"),
            ("kill denoise", WorkerFailed, r"rank 1 died \(exit code -9\)"),
        ]:
            assert torch.equal(executor.execute_forward(batch_of(executor, "none")).frames, expected)
            batch = batch_of(executor, fault)
            started = time.monotonic()
            with pytest.raises(error, match=message) as raised:
                executor.execute_forward(batch)
            assert time.monotonic() - started < 15, fault
            assert not workers_of(os.getpid()), fault
            if fault.startswith("raise"):
                assert "rank 1 of 2" in str(raised.value.__cause__) and "faulty_pipeline" in str(raised.value.__cause__)


def test_bad_input_reloads_nothing_and_a_rank_that_was_stopped_ends_the_call():
    with VideoGenerator.from_pretrained(EMBEDDED_MODEL, num_gpus=2, cfg_size=2, device="cpu") as generator:
        processes = workers_of(os.getpid())
        with pytest.raises(ValueError, match="height=60"):
            generator.generate_video("a tree", **CANVAS | {"height": 60})
        steps: list[tuple[int, int]] = []
        frames = generator.generate_video("a tree", **CANVAS, on_step=lambda *step: steps.append(step)).frames
        assert steps == [(1, 2), (2, 2)]
        assert workers_of(os.getpid()) == processes and len(processes) == 2
        alone = VideoGenerator.from_pretrained(EMBEDDED_MODEL, device="cpu").generate_video("a tree", **CANVAS).frames
        assert (frames.int() - alone.int()).abs().max() <= 1
        executor = generator.executor
        assert isinstance(executor, MultiProcExecutor)
        batch = batch_of(executor, "a tree")
        batch.custom["large"] = torch.zeros(2000, 2000)  # more than a socket holds
        executor.hang_seconds = 1.0
        processes[0].suspend()
        with pytest.raises(WorkerFailed, match="rank 0 has been stopped for 1 s"):  # the other waits in a collective
            executor.execute_forward(batch)
        assert not any(process.is_running() for process in processes)


@pytest.mark.parametrize("timeout", [None, 0.6])
def test_a_worker_that_is_stopped_in_the_middle_of_its_answer_is_not_waited_for(timeout):
    """It has said how long the answer is, and a part of it."""
    ours, theirs = socket.socketpair()
    with theirs:
        script = r"printf '\000\377\377\377a part'; kill -STOP $$"
        process = subprocess.Popen(["/bin/sh", "-c", script], stdout=theirs)
    control, heard = Connection(ours.detach()), multiproc_executor.Heard()
    listener = multiproc_executor._listen(0, control, heard)
    worker = multiproc_executor._Worker(0, process, control, -1, listener)
    answers = multiproc_executor._Answers([worker], heard, 0.2 if timeout is None else 60.0, None)
    try:
        failure = answers.collect(timeout)
    finally:
        process.kill()
        process.wait()
    listener.join()
    control.close()
    expected = "rank 0 has been stopped for 0.2 s" if timeout is None else "no answer of rank 0 within 0.6 s"
    assert expected in str(failure) and heard.get_nowait() == (0, None)


def held() -> set[str]:
    """The sockets and the shared memory of this process."""
    names = set()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists the folder
            names.add(os.readlink(fd))
    return {name for name in names if name.startswith(("socket:", "/memfd:"))}


def test_workers_lost_between_two_calls_come_back_with_their_adapter_and_shutdown_leaves_nothing(tmp_path):
    """One worker does, and starts sooner."""
    before = held()
    executor = MultiProcExecutor(FastVideoArgs(model_path=EMBEDDED_MODEL, device="cpu"))
    plain = executor.execute_forward(batch_of(executor, "a tree")).frames
    executor.collective_rpc("set_lora", write_adapter(tmp_path), 1.0)
    adapted = executor.execute_forward(batch_of(executor, "a tree")).frames
    assert not torch.equal(adapted, plain)
    (lost,) = workers_of(os.getpid())
    lost.kill()
    os.waitid(os.P_PID, lost.pid, os.WEXITED | os.WNOWAIT)  # all its threads are gone
    assert torch.equal(executor.execute_forward(batch_of(executor, "a tree")).frames, adapted)
    executor.collective_rpc("sampling_defaults", timeout=60.0)
    workers_of(os.getpid())[0].suspend()
    with pytest.raises(TimeoutError, match=r"no answer of rank 0 within 0\.1 s"):
        executor.collective_rpc("sampling_defaults", timeout=0.1)
    assert not workers_of(os.getpid())
    check_calls_from_within_a_call(executor)
    assert not workers_of(os.getpid()) and held() <= before
    with pytest.raises(RuntimeError, match="was shut down; make another"):
        batch_of(executor, "a tree")


def check_calls_from_within_a_call(executor: MultiProcExecutor) -> None:
    """The last of them, a shutdown, ends the call that it comes into the midst of."""
    seen: list[RuntimeError] = []

    def on_step(state: ForwardBatch) -> None:
        if state.step_index == 1:
            with pytest.raises(RuntimeError, match="no call from within another") as raised:
                executor.collective_rpc("sampling_defaults")
            seen.append(raised.value)
        else:
            executor.shutdown()

    with pytest.raises(RuntimeError, match="was shut down in the midst of the call"):
        executor.execute_forward(batch_of(executor, "a tree"), ForwardContext(on_step=on_step))
    assert len(seen) == 1


def write_adapter(folder: Path) -> str:
    config = json.loads((Path(EMBEDDED_MODEL) / "transformer" / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    name = "transformer.blocks.0.attn1.to_q.lora"
    path = str(folder / "adapter.safetensors")
    save_file({f"{name}_A.weight": torch.randn(4, width), f"{name}_B.weight": torch.randn(width, 4)}, path)
    return path


SCRIPT = f"""
import asyncio
from fastvideo import VideoGenerator

async def main():
    with VideoGenerator.from_pretrained({EMBEDDED_MODEL!r}, **{RING!r}) as generator:
        print(len(generator.generate_video("a tree", **{CANVAS!r}).frames), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_unguarded_code_from_standard_input_may_use_it_and_be_killed_within_an_event_loop():
    parent = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    with parent.stdin as script:
        script.write(SCRIPT)
    assert parent.stdout.readline() == "5\n"
    processes = workers_of(parent.pid)
    assert len(processes) == 2
    random.choice(processes).suspend()  # it cannot end itself
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive


def test_a_world_of_several_samples_is_refused():
    with pytest.raises(ValueError, match=r"data must be 1; nearest: num_gpus=2"):
        VideoGenerator.from_pretrained(EMBEDDED_MODEL, num_gpus=4, sp_size=2)
