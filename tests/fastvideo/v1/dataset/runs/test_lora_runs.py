"""An adapter in a data-set run: what it is counts, with its strength; where it lies does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.stage_job import engine_settings


def make_config(output: Path, **engine) -> RunConfig:
    return parse_config({"prompts": "shapes", "output": str(output), "limit": 1, "engine": engine})


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    width = json.loads((Path(EMBEDDED_MODEL) / "transformer/config.json").read_text())["num_attention_heads"] * 64
    path = tmp_path / "adapter.safetensors"
    name = "transformer.blocks.0.attn1.to_q.lora"
    save_file({f"{name}_A.weight": torch.randn(2, width), f"{name}_B.weight": torch.randn(width, 2)}, path)
    return path


def test_the_key_changes_with_bytes_and_strength_and_not_with_the_path(tmp_path, adapter, monkeypatch):
    def plan(**engine) -> Run:
        return plan_run(make_config(tmp_path / "out", **engine), write=False).run

    plain, first = plan(), plan(lora_path=str(adapter))
    assert plan(lora_scale=0.5).keys == plain.keys, "a strength of nothing"
    assert plain.keys[Phase.ENCODE] == first.keys[Phase.ENCODE]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(adapter, folder / "renamed.safetensors")
    for path in (folder, folder / "renamed.safetensors", f"file://{folder}"):
        assert plan(lora_path=str(path)).keys == first.keys
    weaker = plan(lora_path=str(adapter), lora_scale=0.5)
    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    adapter.write_bytes(data)
    keys = {run.keys[Phase.DENOISE] for run in (plain, first, weaker, plan(lora_path=str(adapter)))}
    assert len(keys) == 4


def test_a_job_takes_the_runs_adapter_and_no_other(tmp_path, adapter, monkeypatch):
    monkeypatch.chdir(adapter.parent)
    run = plan_run(make_config(tmp_path / "out", lora_path=adapter.name, lora_scale=0.5)).run
    monkeypatch.chdir("/")
    engine = engine_settings(run, {"device": "cpu"})
    assert engine.lora_path == f"file://{adapter}" and engine.lora_scale == 0.5
    plain = plan_run(make_config(tmp_path / "plain")).run
    with pytest.raises(ValueError, match=r"lora_path='a.safetensors' here, but run .* was planned with None"):
        engine_settings(plain, {"lora_path": "a.safetensors"})


def test_an_adapter_that_is_not_there_is_refused_at_planning(tmp_path):
    with pytest.raises(ValueError, match=r"adapter '.*nowhere.safetensors' has 0 safetensors files"):
        plan_run(make_config(tmp_path / "out", lora_path="nowhere.safetensors"), write=False)
