"""A config is parsed once, and a mistake is one line that says what to do."""

from pathlib import Path

import pytest

from fastvideo.v1.dataset.config import RunConfig, load_config, parse_config

GOOD = {"prompts": "shapes", "output": "/tmp/out"}


def test_overrides_lie_over_the_file_and_reach_into_sections() -> None:
    values = GOOD | {"sampling": {"height": 64, "seed": 3}, "model": "/models/wan"}
    config = parse_config(values, {"sampling.height": "128", "shard-size": "16", "engine.vae_tiling": "true"})
    assert (config.sampling.height, config.sampling.seed, config.shard_size) == (128, 3, 16)
    assert config.engine.vae_tiling and config.engine.model_path == "/models/wan"
    assert parse_config(values, {"model": "/other"}).engine.model_path == "/other"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"shard_sise": "8"}, r"'shard_sise' is no key of the config; did you mean 'shard_size'\?"),
        ({"sampling.hight": "8"}, r"'sampling.hight' is no key.*did you mean 'sampling.height'\?"),
        ({"engine": "fast"}, r"engine='fast' must be a section"),
        ({"wave_size": "0"}, r"wave_size='0': .*greater than or equal to 1"),
        ({"sampling.seed": str(2**32)}, r"sampling.seed='4294967296': .*less than"),
        ({"sampling.flow_shift": "0"}, r"sampling.flow_shift='0': .*greater than 0"),
        ({"sampling.guidance_scale": "nan"}, r"sampling.guidance_scale='nan': .*finite"),
        ({"sampling.guidance_scale_2": "-1"}, r"sampling.guidance_scale_2='-1': .*greater than or equal to 0"),
        ({"video.crf": "good"}, r"video.crf='good': .*integer"),
        ({"output": ""}, r"needs a value for 'output'"),
    ],
)
def test_a_mistake_is_one_line_with_its_mend(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(GOOD, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["prompts", "output"])
def test_an_empty_place_is_refused_however_the_config_comes(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=' ' must be a URI"):
        RunConfig(**(GOOD | {name: " "}))


def test_a_yaml_file_is_read_and_a_broken_one_named(tmp_path: Path) -> None:
    good, broken = tmp_path / "good.yaml", tmp_path / "broken.yaml"
    good.write_text("prompts: shapes\noutput: /tmp/out\nvideo: {crf: 20}\n")
    broken.write_text("prompts: [shapes\n")
    assert parse_config(load_config(str(good))).video.crf == 20
    with pytest.raises(ValueError, match=r"broken.yaml.*not YAML"):
        load_config(str(broken))
    with pytest.raises(ValueError, match="does not exist"):
        load_config(str(tmp_path / "none.yaml"))
