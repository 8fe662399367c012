"""Layouts measured on this machine: what their collectives send is what the cost model says."""

import json
from pathlib import Path

import pytest

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.distributed.cluster import Cluster
from fastvideo.v1.distributed.cost import step_cost
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.entrypoints.bench.parallel_run import run_parallel
from fastvideo.v1.models.dits.workload import WAN_TEXT_TOKENS, dit_workload

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
        modelled = step_cost(work, layout, Cluster()).collectives
        # A CPU's tensors are float32 where the model has bfloat16; predictions and squares are float32 in both.
        floats = ("cfg: all-gather", "tensor: norms' all-reduce")
        sent = sum(part.bytes * (1 if part.name in floats else 2) for part in modelled)
        if layout.tensor == 2:  # the norms of text keys, of which the model knows the count alone
            sent += 2 * config["num_layers"] * WAN_TEXT_TOKENS * 4
        assert rows[name]["collectives"] == sum(part.count for part in modelled), name
        assert rows[name]["mb"] == pytest.approx(sent / 1e6, rel=1e-6), name
        assert rows[name]["speedup"] == pytest.approx(rows[name]["efficiency"] * 2)
    assert rows["one GPU"]["mb"] == rows["data=2"]["mb"] == 0
    errors = {row["layout"]: row["of_one_gpu"] for row in figures["errors"]}
    assert set(errors) == {"one GPU", "ring=2", "ulysses=2", "tensor=2"}
    assert all(ratio == pytest.approx(1, abs=0.01) for ratio in errors.values()), "rounding of inputs alone"


def test_more_gpus_than_there_are_is_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="--gpus 4: this host has 2; nearest: 2"):
        run_parallel([], [2, 4])
