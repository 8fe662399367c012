"""A request that cannot be served is turned away before anything works on it, by one line with the mend."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from fastvideo.v1.sampling_params import SamplingParams

OF_TWO_EXPERTS = SamplingParams(guidance_scale=4.0, guidance_scale_2=3.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 64.0}, r"height=64.0 must be a whole number in \[1, 2\*\*31\)"),
        ({"num_inference_steps": 2**31}, "num_inference_steps=2147483648 must be a whole number in"),
        ({"flow_shift": 0}, "flow_shift=0 must be a finite number above 0; leave it out"),
        ({"flow_shift": -1.0}, "flow_shift=-1.0 must be a finite number above 0"),
        ({"flow_shift": math.nan}, "flow_shift=nan must be"),
        ({"flow_shift": math.inf}, "flow_shift=inf must be"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan must be a finite number of at least 0; leave it out"),
        ({"guidance_scale": -0.5}, "guidance_scale=-0.5 must be a finite number of at least 0"),
        ({"guidance_scale": -math.inf}, "guidance_scale=-inf must be"),
        ({"guidance_scale": "5"}, "guidance_scale='5' must be"),
        ({"guidance_scale_2": -0.5}, "guidance_scale_2=-0.5 must be a finite number of at least 0"),
        ({"guidance_mode": "foo"}, "guidance_mode='foo' must be classifier_free or embedded; leave it out"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"seed": True}, "seed=True must be a whole number"),
        ({"negative_prompt": "a \ud800"}, r"negative_prompt is not UTF-8: '\\ud800' at 2"),
    ],
)
def test_a_value_out_of_its_range_is_named_with_rule_and_mend(values, message):
    with pytest.raises(ValueError, match=message):
        OF_TWO_EXPERTS.with_overrides(**values)


def test_numbers_of_other_libraries_are_numbers():
    values = {"seed": np.uint32(7), "guidance_scale": np.float32(1.5), "flow_shift": 3}
    assert asdict(SamplingParams().with_overrides(**values)).items() >= values.items()


def test_a_record_older_than_a_rule_stays_readable():
    old = {"flow_shift": -1.0, "guidance_scale": math.inf, "seed": 3}
    assert asdict(SamplingParams.from_record(old)) == asdict(SamplingParams()) | old
