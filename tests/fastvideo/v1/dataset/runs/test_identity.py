"""Ids, seeds and keys: what changes them and what does not."""

import shutil
import struct
import uuid
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.config import VideoConfig
from fastvideo.v1.dataset.runs import fingerprint, keys
from fastvideo.v1.dataset.runs.fingerprint import fingerprint_component
from fastvideo.v1.dataset.runs.keys import phase_keys
from fastvideo.v1.dataset.runs.sample import Sample, derive_seed, image_input_id, input_id, sample_id
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.describe import describe_pipeline
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.sampling_params import SamplingParams

SAMPLING = SamplingParams(height=64, width=64, num_frames=17)


def keys_with(engine: FastVideoArgs | None = None, video: VideoConfig | None = None, **changes) -> dict[Phase, str]:
    description = describe_pipeline(EMBEDDED_MODEL)
    prints = {name: changes.pop(name, name) for names in description.components.values() for name in names}
    versions = changes.pop("versions", description.stage_versions)
    settings = changes.pop("settings", description.settings)
    sampling = replace(SAMPLING, **changes)
    description = replace(description, stage_versions=versions, settings=settings)
    return phase_keys(description, prints, engine or FastVideoArgs(), sampling, video or VideoConfig())


def changed(keys: dict[Phase, str]) -> list[Phase]:
    return [phase for phase in ALL_PHASES if keys[phase] != keys_with()[phase]]


def settings_with(phase: Phase, **values) -> dict[Phase, dict]:
    settings = describe_pipeline(EMBEDDED_MODEL).settings
    return {**settings, phase: {**settings[phase], **values}}


ALL, FROM_DENOISE, DECODE, NONE = list(ALL_PHASES), [Phase.DENOISE, Phase.DECODE], [Phase.DECODE], []


@pytest.mark.parametrize(
    ("changes", "phases"),
    [
        ({"text_encoder": "other"}, ALL),
        ({"tokenizer": "other"}, ALL),
        ({"engine": FastVideoArgs(text_encoder_precision="bfloat16")}, ALL),
        ({"transformer": "other"}, FROM_DENOISE),
        ({"scheduler": "other"}, FROM_DENOISE),
        ({"settings": settings_with(Phase.ENCODE, expand_timesteps=True)}, ALL),
        ({"settings": settings_with(Phase.DENOISE, boundary_ratio=0.9)}, FROM_DENOISE),
        ({"num_inference_steps": 7}, FROM_DENOISE),
        ({"guidance_scale_2": 3.0}, FROM_DENOISE),
        ({"flow_shift": 7.0}, FROM_DENOISE),
        ({"engine": FastVideoArgs(precision="bfloat16")}, FROM_DENOISE),
        ({"engine": FastVideoArgs(attention_backend="SLIDING_TILE_ATTN")}, FROM_DENOISE),
        ({"engine": FastVideoArgs(attention_backend="FP8_ATTN")}, FROM_DENOISE),
        ({"engine": FastVideoArgs(attention_backend="SOMEONES_OWN")}, FROM_DENOISE),
        ({"vae": "other"}, DECODE),
        ({"engine": FastVideoArgs(vae_tiling=True)}, DECODE),
        ({"engine": FastVideoArgs(vae_precision="bfloat16")}, DECODE),
        ({"video": VideoConfig(crf=30)}, DECODE),
        ({"fps": 24}, DECODE),
        ({"engine": FastVideoArgs(attention_backend="TORCH_SDPA", device="cpu", model_path="/x")}, NONE),
        ({"engine": FastVideoArgs(expert_offload=True)}, NONE),
        ({"engine": FastVideoArgs(num_gpus=16, tp_size=2, sp_size=4, ring_size=2, cfg_size=2)}, NONE),
        ({"seed": 9, "negative_prompt": "blurry"}, NONE),
    ],
)
def test_a_change_reaches_its_own_phase_and_those_after(changes: dict, phases: list[Phase]) -> None:
    assert changed(keys_with(**changes)) == phases


def test_variants_that_are_not_read_are_no_part_of_a_fingerprint(tmp_path: Path) -> None:
    folder = shutil.copytree(f"{EMBEDDED_MODEL}/transformer", tmp_path / "transformer")
    shutil.copy(folder / "diffusion_pytorch_model.safetensors", folder / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    assert fingerprint_component(str(folder)) == fingerprint_component(f"{EMBEDDED_MODEL}/transformer")
    with (folder / "diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"another")
    assert fingerprint_component(str(folder)) != fingerprint_component(f"{EMBEDDED_MODEL}/transformer")


def test_tiles_that_encode_have_a_version_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_key(components: tuple[str, ...], tiling: bool) -> str:
        description = describe_pipeline(EMBEDDED_MODEL)
        description = replace(description, components=description.components | {Phase.ENCODE: components})
        prints = dict.fromkeys(("text_encoder", "tokenizer", "transformer", "scheduler", "vae"), "same")
        return phase_keys(description, prints, FastVideoArgs(vae_tiling=tiling), SAMPLING, VideoConfig())[Phase.ENCODE]

    cases = [(("text_encoder", "vae"), True), (("text_encoder", "vae"), False), (("text_encoder",), True)]
    before = [encode_key(*case) for case in cases]
    monkeypatch.setattr(keys, "TILED_ENCODE_VERSION", keys.TILED_ENCODE_VERSION + 1)
    assert [encode_key(*case) == key for case, key in zip(cases, before, strict=True)] == [False, True, True]


@pytest.mark.parametrize("phase", ALL_PHASES)
def test_a_raised_stage_version_reaches_its_phase_and_those_after(phase: Phase) -> None:
    versions = dict(describe_pipeline(EMBEDDED_MODEL).stage_versions)
    name = next(iter(versions[phase]))
    versions[phase] = {**versions[phase], name: versions[phase][name] + 1}
    assert changed(keys_with(versions=versions)) == ALL[ALL.index(phase) :]


def test_keys_and_ids_are_short_hexadecimal() -> None:
    for key in keys_with().values():
        assert len(key) == 16 and int(key, 16) >= 0
    id = sample_id("a", "b", 3, {})
    assert len(id) == 32 and len(input_id({"prompt": "a"})) == 32 and int(id, 16) >= 0


def test_an_id_is_what_the_sample_is() -> None:
    same = sample_id("a cat", "", 1, {"height": 64, "width": 32})
    assert same == sample_id("a cat", "", 1, {"width": 32, "height": 64})
    others = [
        sample_id("a dog", "", 1, {"height": 64, "width": 32}),
        sample_id("a cat", "blur", 1, {"height": 64, "width": 32}),
        sample_id("a cat", "", 2, {"height": 64, "width": 32}),
        sample_id("a cat", "", 1, {"height": 64}),
        sample_id("a cat", "", 1, {}),
    ]
    assert len({same, *others}) == 6


def test_ids_without_an_image_stay_what_they_were() -> None:
    """Known values of the first release: objects in stores bear them."""
    assert sample_id("a cat", "", 1, {}) == "eb62b45f01f635a9e7d3fa8e061a76cb"
    overrides = {"height": 64, "guidance_scale": 4.5}
    assert sample_id("a cat", "blur", 2**31, overrides) == "54de2e46f1c0ede5612ce5d77a50fde4"
    assert input_id({"prompt": "a cat"}) == "6c2ed3bea0cbbaec773071995caf22fb"
    assert derive_seed("a cat", 0, 1) == 3052750162


def test_an_image_and_its_canvas_are_part_of_what_a_sample_and_an_input_are() -> None:
    samples = [sample_id("a cat", "", 1, {}, image) for image in (None, "aa", "bb")]
    inputs = [image_input_id(*values) for values in (("aa", 64, 32, 9), ("bb", 64, 32, 9), ("aa", 32, 64, 9))]
    inputs += [image_input_id("aa", 64, 32, 13), input_id({"prompt": "aa"})]
    assert len(set(samples)) == 3 and len(set(inputs)) == 5


def test_seeds_differ_by_prompt_run_and_repeat_and_fit_a_generator() -> None:
    seeds = [derive_seed(prompt, run, repeat) for prompt in "ab" for run in (0, 1) for repeat in range(50)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed("a", 0, 0) == seeds[0]
    assert max(seeds) > 2**31  # the whole range, not its lower half


def test_a_samples_request_is_the_runs_with_its_own_values() -> None:
    sample = Sample(id="x", prompt="p", negative_prompt="n", seed=5, overrides={"height": 128})
    assert sample.sampling(SAMPLING) == replace(SAMPLING, height=128, seed=5, negative_prompt="n")


def copy_component(target: str) -> None:
    source = Path(EMBEDDED_MODEL) / "vae"
    fs, root = fsspec.core.url_to_fs(target)
    for file in source.iterdir():
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/{file.name}", file.read_bytes())


def test_a_fingerprint_is_the_same_under_another_path_and_store(tmp_path: Path, s3) -> None:
    here = fingerprint_component(f"{EMBEDDED_MODEL}/vae")
    for target in (f"{tmp_path}/copy", f"memory://{uuid.uuid4()}/vae", f"s3://videos/{uuid.uuid4()}/vae"):
        copy_component(target)
        assert fingerprint_component(target) == here
        assert fingerprint_component(target + "/") == here
    (tmp_path / "copy" / "README.md").write_text("notes do not count")
    assert fingerprint_component(f"{tmp_path}/copy") == here


def test_any_byte_of_a_small_weight_file_and_any_config_value_counts(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(f"{EMBEDDED_MODEL}/vae", folder)
    prints = {fingerprint_component(str(folder))}
    weights = folder / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    for position in (20, len(data) // 2, len(data) - 1):
        data[position] ^= 1
        weights.write_bytes(data)
        prints.add(fingerprint_component(str(folder)))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"z_dim": 16', '"z_dim": 8'))
    prints.add(fingerprint_component(str(folder)))
    assert len(prints) == 5
    config.write_text(config.read_text().replace("{", '{"_name_or_path": "/home/someone/vae",', 1))
    assert fingerprint_component(str(folder)) in prints


def test_of_a_large_file_header_size_and_sampled_blocks_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", 2**20)
    header = b'{"weight": "bytes"}     '
    body = bytearray(8 * 2**20)
    weights = tmp_path / "model.safetensors"

    def fingerprint_now(header: bytes = header) -> str:
        weights.write_bytes(struct.pack("<Q", len(header)) + header + body)
        return fingerprint_component(str(tmp_path))

    first = fingerprint_now()
    assert fingerprint_now(header.replace(b"bytes", b"other")) != first
    for position in (0, len(body) - 1, len(body) - fingerprint.BLOCK_BYTES):
        body[position] ^= 1
        assert fingerprint_now() != first
        body[position] ^= 1
    assert fingerprint_now() == first
    body.extend(b"0000")
    assert fingerprint_now() != first


def test_a_component_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no"):
        fingerprint_component(str(tmp_path))


def test_the_vae_counts_where_it_encodes_images() -> None:
    description = describe_pipeline(EMBEDDED_MODEL)
    phases = {**description.components, Phase.ENCODE: ("text_encoder", "tokenizer", "vae")}
    animating = replace(description, components=phases)
    prints = {name: name for names in phases.values() for name in names}

    def encode_key(engine: FastVideoArgs) -> str:
        return phase_keys(animating, prints, engine, SAMPLING, VideoConfig())[Phase.ENCODE]

    assert encode_key(FastVideoArgs(vae_precision="bfloat16")) != encode_key(FastVideoArgs())
