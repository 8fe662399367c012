"""Layouts measured on this machine: what their collectives send is what the cost model says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.distributed.cluster import Cluster
from fastvideo.v1.distributed.cost import Workload, step_cost
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.entrypoints.bench.parallel_run import run_parallel
from fastvideo.v1.models.dits.workload import dit_workload

SYSTEM = "wan21_t2v_1.3B"
EMBEDDED = json.loads(Path(EMBEDDED_MODEL, "transformer/config.json").read_text())
LAYOUTS = {
    "cfg=2": ParallelLayout(cfg=2),
    "ring=2": ParallelLayout(ring=2),
    "ulysses=2": ParallelLayout(ulysses=2),
    "tensor=2": ParallelLayout(tensor=2),
}


@pytest.mark.slow
def test_each_layout_sends_what_the_model_says_and_errs_no_more_than_one_process(tmp_path):
    config = {**EMBEDDED, "num_attention_heads": 4, "num_layers": 2}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    asked = {"rounds": 1, "config": str(file), "canvas": (32, 32, 5)}
    figures = run_parallel([f"{SYSTEM}_480p"], [2], compare=[SYSTEM], **asked)
    work = dit_workload(config, (2, 4, 4), weight_bytes=0, num_branches=2)
    rows = {row["layout"]: row for row in figures["rows"]}
    assert set(rows) == {"one GPU", "data=2", *LAYOUTS}
    for name, layout in LAYOUTS.items():
        count, sent = collectives(work, layout)
        if layout.cfg == 1:  # the second branch takes the first block's attention from the first
            attention = replace(work, num_layers=1, num_sums=1, num_norm_sums=2, num_branches=1, output_values=0)
            spared = collectives(attention, layout)
            count, sent = count - spared[0], sent - spared[1]
        if layout.tensor == 2:  # the squares of queries and keys go together
            count -= 2 * config["num_layers"] - 1
        assert rows[name]["collectives"] == count, name
        assert rows[name]["mb"] == pytest.approx(sent / 1e6, rel=1e-6), name
        assert rows[name]["speedup"] == pytest.approx(rows[name]["efficiency"] * 2)
    assert rows["one GPU"]["mb"] == rows["data=2"]["mb"] == 0
    errors = {row["layout"]: row["of_one_gpu"] for row in figures["errors"]}
    assert set(errors) == {"one GPU", "ring=2", "ulysses=2", "tensor=2"}
    assert all(ratio == pytest.approx(1, abs=0.01) for ratio in errors.values()), "rounding of inputs alone"


def collectives(work: Workload, layout: ParallelLayout) -> tuple[int, float]:
    """How many the model has in a step, and the bytes that they send in float32."""
    # A CPU's tensors are float32 where the model has bfloat16; predictions and squares are float32 in both.
    floats = ("cfg: all-gather", "tensor: norms' all-reduce")
    found = [part for part in step_cost(work, layout, Cluster()).collectives if part.bytes]
    return sum(part.count for part in found), sum(part.bytes * (1 if part.name in floats else 2) for part in found)


def test_more_gpus_than_there_are_is_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="--gpus 4: this host has 2; nearest: 2"):
        run_parallel([], [2, 4])
