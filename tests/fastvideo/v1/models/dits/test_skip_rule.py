"""Rules of step skipping: published ones for their own models, files for others, one clear line where there is none."""

import json

import numpy as np
import pytest

from fastvideo.v1.models.dits.hunyuan import HunyuanVideoTransformerConfig
from fastvideo.v1.models.dits.skip_rule import SkipRule, rule_for
from fastvideo.v1.models.dits.wan import WanTransformerConfig

WAN_14B = WanTransformerConfig()
WAN_1_3B = WanTransformerConfig(num_attention_heads=12, num_layers=30)


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_14B, HunyuanVideoTransformerConfig()])
def test_published_models_have_a_rule_each(config):
    rule = rule_for(config, 1, None)
    distance = np.random.default_rng().uniform(0, 0.3)
    assert rule.estimate(distance) == pytest.approx(np.polyval(rule.coefficients, distance), rel=1e-9)
    assert rule.forced_steps(50) == {*range(rule.first_steps), 49}
    assert len({rule_for(other, 1, None) for other in (WAN_1_3B, WAN_14B, HunyuanVideoTransformerConfig())}) == 3


@pytest.mark.parametrize(
    ("config", "num_experts"),
    [
        (WanTransformerConfig(num_layers=8), 1),
        (WanTransformerConfig(in_channels=36, image_dim=1280, added_kv_proj_dim=5120), 1),
        (WanTransformerConfig(num_attention_heads=24, num_layers=30, in_channels=48), 1),
        (WAN_14B, 2),
        (HunyuanVideoTransformerConfig(num_layers=2), 1),
    ],
)
def test_other_models_are_refused_without_a_file(config, num_experts, tmp_path):
    with pytest.raises(ValueError, match=r"no coefficients are published for this checkpoint.*fit-step-skipping"):
        rule_for(config, num_experts, None)
    file = tmp_path / "rule.json"
    file.write_text(json.dumps({"coefficients": [2, 1], "first_steps": 3, "last_steps": 0}))
    rule = rule_for(config, num_experts, str(file))
    assert rule == SkipRule(coefficients=(2.0, 1.0), first_steps=3, last_steps=0) and rule.estimate(0.5) == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "is no rule of step skipping"),
        ("[]", "is no rule of step skipping"),
        ('{"coefficients": [1]}', "lacks 'first_steps'; `fastvideo fit-step-skipping` writes one"),
        ('{"coefficients": [], "first_steps": 1, "last_steps": 1}', "must be at least one finite number"),
        ('{"coefficients": [NaN], "first_steps": 1, "last_steps": 1}', "must be at least one finite number"),
        ('{"coefficients": [1], "first_steps": 0, "last_steps": 1}', "the first step has nothing to reuse"),
    ],
)
def test_a_broken_file_is_named(text, message, tmp_path):
    file = tmp_path / "rule.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        rule_for(WAN_14B, 1, str(file))
    assert str(file) in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        rule_for(WAN_14B, 1, str(tmp_path / "none.json"))
