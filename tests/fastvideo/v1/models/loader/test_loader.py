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
from fastvideo.v1.models.loader.weight_files import tensor_names
from fastvideo.v1.pipelines.describe import describe_pipeline

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


def test_of_several_files_the_one_of_the_published_name_is_read(model):
    whole = dict(load_transformer(model).named_parameters())
    names, variant = sorted(load_file(model / WEIGHTS)), model / "transformer/diffusion_pytorch_model.fp16.safetensors"
    save_file({"blocks.0.attn1.to_q.weight": torch.zeros(1)}, variant)
    (model / f"{WEIGHTS}.index.fp16.json").write_text("{}")
    assert all(torch.equal(parameter, whole[name]) for name, parameter in load_transformer(model).named_parameters())
    assert sorted(tensor_names(ModelRepository(str(model)), "transformer")) == names
    (model / WEIGHTS).rename(model / "transformer/another.safetensors")
    with pytest.raises(ValueError, match=r"transformer has 2 safetensors files and no index; one is expected, or one"):
        load_transformer(model)


@pytest.mark.parametrize(
    ("component", "class_name", "file", "change", "message"),
    [
        ("text_encoder", "UMT5EncoderModel", "config.json", {"d_model": None}, "d_model must have a value"),
        ("vae", "AutoencoderKLWan", "config.json", {"latents_mean": None}, "latents_mean must have a value"),
        ("vae", "AutoencoderKLWan", "config.json", {"latents_mean": [1.0]}, "latents_mean and latents_std have 1 and"),
        (
            "tokenizer",
            "T5Tokenizer",
            "tokenizer_config.json",
            {"tokenizer_class": None},
            "tokenizer_class=None must",
        ),
        (
            "transformer",
            "WanTransformer3DModel",
            "diffusion_pytorch_model.safetensors.index.json",
            {},
            "weight_map=None must give the file of each tensor",
        ),
    ],
)
def test_a_broken_config_is_one_line_with_its_file(model, component, class_name, file, change, message):
    path = model / component / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))
    looks = [lambda: load_component(ModelRepository(str(model)), component, class_name, CPU)]
    looks += [] if component == "tokenizer" else [lambda: describe_pipeline(str(model))]
    for look in looks:
        with pytest.raises(ValueError, match=f"^{path}: {message}") as caught:
            look()
        assert "\n" not in str(caught.value)


def test_a_config_that_is_no_object_is_named(model):
    (model / "vae/config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"vae/config\.json must be a JSON object, not '\[1, 2\]'"):
        describe_pipeline(str(model))


def test_an_unknown_key_is_named_with_its_file(model):
    edit_weights(model, lambda tensors: tensors.update({"blocks.0.attn3.to_q.weight": torch.zeros(2)}))
    with pytest.raises(
        ValueError, match=rf"{WEIGHTS}: key 'blocks.0.attn3.to_q.weight' is not of WanTransformer3DModel"
    ):
        load_transformer(model)


@pytest.mark.parametrize("look", [load_transformer, lambda root: describe_pipeline(str(root))], ids=["load", "plan"])
@pytest.mark.parametrize("indexed", [False, True], ids=["one file", "index"])
def test_weights_of_sparse_attention_are_refused_with_the_reason(model, look, indexed):
    edit_weights(model, lambda tensors: tensors.update({"blocks.0.to_gate_compress.weight": torch.zeros(2)}))
    if indexed:
        weight_map = dict.fromkeys(load_file(model / WEIGHTS), Path(WEIGHTS).name)
        (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"'blocks.0.to_gate_compress.weight' is the gate of video sparse attention"):
        look(model)


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
    for damaged in (b"", data[:100], b"\xff" * 100):
        (model / WEIGHTS).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{WEIGHTS} is truncated or damaged"):
            describe_pipeline(str(model))


def test_the_names_of_tensors_are_told_without_reading_them(model):
    assert sorted(tensor_names(ModelRepository(str(model)), "transformer")) == sorted(load_file(model / WEIGHTS))


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
