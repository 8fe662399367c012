"""What a model's config makes of keys that the model does not know."""

from importlib.resources import files

from fastvideo.v1.entrypoints.bench.memory import load_config
from fastvideo.v1.models.dits.wan import WanTransformerConfig
from fastvideo.v1.models.registry import resolve_model


def test_a_strange_key_is_told_of_once(caplog):
    values = {"_class_name": "WanTransformer3DModel", "num_layers": 2, "strange_key": 1}
    assert [WanTransformerConfig.from_dict(values).num_layers for _ in range(3)] == [2, 2, 2]
    assert caplog.messages == ["WanTransformerConfig ignores config keys strange_key"]


def test_published_configs_have_nothing_to_tell_of(caplog):
    names = [file.name.removesuffix(".json") for file in (files("fastvideo.data") / "configs").iterdir()]
    configs = [config for config in map(load_config, names) if "_class_name" in config]
    assert len(configs) > 4
    for config in configs:
        statistics = {name: [1.0] * config["z_dim"] for name in ("latents_mean", "latents_std") if "z_dim" in config}
        resolve_model(config["_class_name"]).config_class.from_dict(statistics | config)
    assert caplog.messages == []
