"""The bench of a whole denoise shard runs the stage job that data sets are made with, from files."""

import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.entrypoints.bench.checkpoint import _shapes
from fastvideo.v1.entrypoints.bench.memory import META, load_config
from fastvideo.v1.entrypoints.bench.pipeline import bench_pipeline
from fastvideo.v1.models.loader.component import build_model
from fastvideo.v1.models.loader.weights import assign_weights
from fastvideo.v1.models.registry import resolve_model

SMALL = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize("model, layers", [(EMBEDDED_MODEL, None), ("wan21_t2v_1.3B", 1)])
def test_a_shard_is_metered_from_the_start_of_its_process(model, layers, tmp_path):
    figures = bench_pipeline(model, 3, layers, SMALL, str(tmp_path))
    values = {row["figure"]: row["value"] for row in figures["rows"]}
    assert values["of_ideal"] == 1
    assert (values["samples"], values["forwards"]) == (2, 2 * 2 * 2), "two warm samples, two steps, two branches"
    assert 0 < values["loaded_seconds"] < values["first_step_seconds"]
    assert 0 <= values["idle_share"] < 1
    busy = values["forwards"] * values["forward_ms"] / 1e3
    assert busy == pytest.approx((1 - values["idle_share"]) * values["wall_seconds"])
    assert (figures["weights_gib"] > 0) == (layers is not None)
    assert not list(tmp_path.iterdir()), "what it wrote is gone"


@pytest.mark.parametrize("name", ["wan21_t2v_14B", "hunyuanvideo_13B"])
def test_the_files_hold_every_weight_of_the_model(name):
    config = load_config(name)
    model = build_model(resolve_model(config["_class_name"]), config, META, torch.bfloat16)
    tensors = [("file", key, torch.empty(shape, dtype=torch.bfloat16, device=META)) for key, shape in _shapes(model)]
    assign_weights(model, tensors, "files")  # raises for a name or shape that is not the model's, or one too few
    assert any(".to_q." in key for _, key, _ in tensors), "packed weights lie in their parts, as published"


def test_one_sample_is_too_few():
    with pytest.raises(ValueError, match="num_samples=1 must be at least 2"):
        bench_pipeline(EMBEDDED_MODEL, 1, None, SMALL, None)
