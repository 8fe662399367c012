"""A user's own package, found by its entry point: its classes make a data set as ours do."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1 import plugins
from fastvideo.v1.attention import DistributedAttention, LocalAttention, selector
from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.objects.state_file import unpack_state
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.models import registry
from fastvideo.v1.pipelines import registry as pipeline_registry
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.stage_job import engine_settings, run_stage_job

EXAMPLE = Path(__file__).parents[2] / "example_package"
PROMPTS = ["a red circle moves left", "a white star grows"]


def write_dist_info(site: Path, name: str, entry_point: str) -> None:
    """What ``pip install`` leaves for importlib.metadata."""
    folder = site / f"{name.replace('-', '_')}-1.0.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
    (folder / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{entry_point}\n")


@pytest.fixture
def clean_registries(monkeypatch: pytest.MonkeyPatch):
    """Registries as in a new process, put back at the end; and no module of the example stays imported."""
    for module, name in ((registry, "_MODELS"), (pipeline_registry, "_PIPELINES"), (selector, "_REGISTERED")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    monkeypatch.setattr(plugins, "_called", set())
    plugins._entry_points.cache_clear()
    yield
    plugins._entry_points.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_registries: None) -> None:
    """The example package, as if installed, here and in processes started from here."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"][plugins.GROUP].items()
    write_dist_info(tmp_path / "site", project["name"], f"{name} = {target}")
    for folder in (EXAMPLE, tmp_path / "site"):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The embedded weights under the example's classes."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "MirroredPipeline", "transformer": ["motion_example", "MirroredTransformer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


def make_config(folder: Path, model: str, **engine) -> RunConfig:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    sampling = {"num_inference_steps": 3, "num_frames": 5, "guidance_scale": 1.0}
    values = {"prompts": str(folder / "prompts.txt"), "output": str(folder / "out"), "sampling": sampling}
    return parse_config(values | {"engine": {"device": "cpu", "model_path": model} | engine})


def run_phases(config: RunConfig, phases: list[Phase]) -> Run:
    for phase in phases:
        plan = plan_run(config)
        for shard in (s for s in write_shards(plan.run, plan.scan, config, 1) if s.phase is phase):
            worker = GPUWorker(engine_settings(plan.run, {"device": "cpu"}), [phase])
            run_stage_job(plan.run, phase, shard.path, worker, JobSettings(checkpoint_every=1))
    return plan.run


def latents(run: Run) -> dict[str, bytes]:
    key = run.keys[Phase.DENOISE]
    return {item.id: run.objects.read(object_path(Phase.DENOISE, key, item.id)) for item in run.iter_samples()}


def test_the_examples_classes_make_a_data_set_and_go_on_where_a_killed_job_stopped(tmp_path, model, installed):
    whole = run_phases(make_config(tmp_path / "whole", model, attention_backend="POOLED_ATTN"), list(Phase))
    config = make_config(tmp_path / "killed", model, attention_backend="POOLED_ATTN")
    run = run_phases(config, [Phase.ENCODE])
    plan = plan_run(config)
    (shard,) = (s for s in write_shards(plan.run, plan.scan, config, 1) if s.phase is Phase.DENOISE)
    command = [sys.executable, "-m", "fastvideo.v1.worker.stage_job", "--output", config.output, "--run", run.name]
    command += ["--phase", "denoise", "--shard", shard.path, "--engine", '{"device": "cpu"}']
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while json.loads(job.stdout.readline())["event"] != "committed":
        continue
    job.kill()
    job.wait()
    run = run_phases(config, [Phase.DENOISE, Phase.DECODE])
    assert [(state.done, state.missing) for state in scan(run).values()] == [(2, 0)] * 3
    assert latents(run) == latents(whole) and len(latents(run)) == 2
    for data in latents(run).values():
        video = unpack_state(data, "latents")[0]["latents"]
        torch.testing.assert_close(video, video.flip(-1), rtol=0, atol=1e-4)


def test_an_approximate_backend_has_a_key_of_its_own_however_it_is_chosen(tmp_path, model, installed, monkeypatch):
    exact = plan_run(make_config(tmp_path / "exact", model), write=False).run
    chosen = plan_run(make_config(tmp_path / "chosen", model, attention_backend="POOLED_ATTN"), write=False).run
    monkeypatch.setenv("FASTVIDEO_ATTENTION_BACKEND", "POOLED_ATTN")
    by_environment = plan_run(make_config(tmp_path / "environment", model), write=False).run
    assert by_environment.keys == chosen.keys and by_environment.engine["attention_backend"] == "POOLED_ATTN"
    assert exact.keys[Phase.ENCODE] == chosen.keys[Phase.ENCODE]
    assert exact.keys[Phase.DENOISE] != chosen.keys[Phase.DENOISE]
    with pytest.raises(ValueError, match=rf"attention_backend='POOLED_ATTN' here, but run {exact.name} was planned wi"):
        engine_settings(exact, {})
    monkeypatch.setenv("FASTVIDEO_ATTENTION_BACKEND", "TORCH_SDPA")
    assert plan_run(make_config(tmp_path / "dense", model), write=False).run.keys == exact.keys
    assert engine_settings(exact, {"attention_backend": "TORCH_SDPA"}).attention_backend == "TORCH_SDPA"
    with pytest.raises(ValueError, match="was planned with None"):
        engine_settings(exact, {"attention_backend": "POOLED_ATTN"})


def test_a_backend_that_does_not_exist_is_refused_at_planning(tmp_path, model, installed):
    with pytest.raises(ValueError, match=r"'POOL' does not exist; there are: FLASH_ATTN, .*POOLED_ATTN"):
        plan_run(make_config(tmp_path / "run", model, attention_backend="POOL"), write=False)


def test_an_approximate_backend_serves_attention_over_the_video_only(installed):
    requested = selector.requested_backend("POOLED_ATTN")
    layers = [
        DistributedAttention(2, 8),
        LocalAttention(2, 8),
        LocalAttention(2, 8, supported_attention_backends=("POOLED_ATTN",)),
    ]
    for layer in layers:
        layer.select(torch.device("cpu"), torch.float32, requested)
    names = [type(layer.backend).__name__ for layer in layers]
    assert names == ["PooledAttention", "SDPABackend", "PooledAttention"]
    with pytest.raises(ValueError, match="POOLED_ATTN cannot be had: it needs a head size that 4 divides, not 6"):
        DistributedAttention(2, 6).select(torch.device("cpu"), torch.float32, requested)


def test_a_built_in_backend_cannot_be_replaced(clean_registries):
    with pytest.raises(ValueError, match="'TORCH_SDPA' is built in"):
        selector.register_attention_backend("TORCH_SDPA", "motion_example.attention:PooledAttention")


@pytest.mark.parametrize("source", ["import package_that_is_not_there", "raise NameError('oh')", "nothing = 1"])
def test_a_plugin_that_cannot_be_loaded_is_named_with_its_package(tmp_path, monkeypatch, clean_registries, source):
    (tmp_path / "broken_plugin.py").write_text(source)
    write_dist_info(tmp_path, "broken-package", "broken = broken_plugin:register")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"plugin 'broken' .* of package 'broken-package' cannot be loaded") as e:
            registry.resolve_model("WanTransformer3DModel")
        assert "\n" not in str(e.value)


def test_a_plugin_is_called_once(tmp_path, monkeypatch, clean_registries):
    (tmp_path / "counting_plugin.py").write_text(
        "from fastvideo.v1.models.registry import resolve_model\ncalls = []\n"
        "def register():\n    calls.append(resolve_model('WanTransformer3DModel'))\n"
    )
    write_dist_info(tmp_path, "counting", "counting = counting_plugin:register")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(3):
        registry.resolve_model("AutoencoderKLWan")
    import counting_plugin

    assert len(counting_plugin.calls) == 1
