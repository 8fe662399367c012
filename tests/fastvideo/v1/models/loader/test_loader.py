"""Loading: from anywhere, and every way in which a model directory can be broken, each with one clear line."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.loader.component import load_component
from fastvideo.v1.models.loader.repository import ModelRepository

CPU = FastVideoArgs(device="cpu")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model, to be broken."""
    return Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))


def load_transformer(root: str | Path):
    return load_component(ModelRepository(str(root)), "transformer", "WanTransformer3DModel", CPU)


def edit_weights(model: Path, change) -> None:
    tensors = load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, model / WEIGHTS)


def test_a_model_on_a_remote_store_is_the_same_model():
    remote = fsspec.filesystem("memory")
    remote.put(EMBEDDED_MODEL, "/models/shapes", recursive=True)
    ours, local = load_transformer("memory://models/shapes"), load_transformer(EMBEDDED_MODEL)
    for (name, a), (_, b) in zip(ours.named_parameters(), local.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    tokenizer = load_component(ModelRepository("memory://models/shapes"), "tokenizer", "T5Tokenizer", CPU)
    assert tokenizer("a red circle").input_ids


def test_weights_in_shards_follow_the_index(model):
    tensors = load_file(model / WEIGHTS)
    names = sorted(tensors)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, model / "transformer" / file)
    (model / WEIGHTS).unlink()
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = model / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    whole = dict(load_transformer(EMBEDDED_MODEL).named_parameters())
    assert all(torch.equal(parameter, whole[name]) for name, parameter in load_transformer(model).named_parameters())
    (model / "transformer/part-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"part-2\.safetensors is missing, though .*index\.json lists it"):
        load_transformer(model)


def test_an_unknown_key_is_named_with_its_file(model):
    edit_weights(model, lambda tensors: tensors.update({"blocks.0.attn3.to_q.weight": torch.zeros(2)}))
    with pytest.raises(
        ValueError, match=rf"{WEIGHTS}: key 'blocks.0.attn3.to_q.weight' is not of WanTransformer3DModel"
    ):
        load_transformer(model)


def test_one_missing_part_of_a_packed_weight_is_noticed(model):
    edit_weights(model, lambda tensors: tensors.pop("blocks.3.attn1.to_k.weight"))
    with pytest.raises(
        ValueError, match=r"transformer lacks 1 weights of WanTransformer3DModel: blocks\.3\.attn1\.to_qkv"
    ):
        load_transformer(model)


def test_a_wrong_shape_is_named_and_never_broadcast(model):
    edit_weights(model, lambda tensors: tensors.update({"proj_out.bias": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"proj_out\.bias: shape \[1\] in the checkpoint, \[64\] in the model"):
        load_transformer(model)


def test_a_truncated_file_is_named(model):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is truncated or damaged"):
        load_transformer(model)


def test_a_missing_component_is_named(model):
    shutil.rmtree(model / "transformer")
    with pytest.raises(ValueError, match=r"transformer/config\.json is missing"):
        load_transformer(model)
    shutil.rmtree(model / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer is missing"):
        load_component(ModelRepository(str(model)), "tokenizer", "T5Tokenizer", CPU)


def test_a_hub_id_is_looked_up_in_the_local_cache_only(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"nothing is downloaded at run time; fetch it first: hf download Wan-AI/nowhere"
    ):
        ModelRepository("Wan-AI/nowhere")
    snapshot = tmp_path / "models--Wan-AI--shapes/snapshots/abc"
    shutil.copytree(EMBEDDED_MODEL, snapshot)
    (tmp_path / "models--Wan-AI--shapes/refs").mkdir()
    (tmp_path / "models--Wan-AI--shapes/refs/main").write_text("abc")
    assert ModelRepository("Wan-AI/shapes").root == str(snapshot)


def test_a_directory_without_an_index_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        ModelRepository(str(tmp_path))


def test_cuda_without_a_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match="no GPU is visible"):
        load_component(ModelRepository(EMBEDDED_MODEL), "vae", "AutoencoderKLWan", FastVideoArgs(device="cuda"))
