"""Models that take turns on one device."""

import pytest
import torch
from torch import nn

from fastvideo.v1.models.swap import ModelSwap

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def build() -> nn.Sequential:
    """Two dtypes and a parameter of odd length."""
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3).bfloat16()).requires_grad_(False)


def devices(model: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in model.parameters()}


def test_one_model_is_on_the_device_and_no_weight_changes():
    models = [build().to("cuda"), build()]
    expected = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    swap = ModelSwap(models, torch.device("cuda", torch.cuda.current_device()))
    for turn in (0, 1, 1, 0, 1):
        swap.bring(models[turn])
        assert devices(models[turn]) == {"cuda"} and devices(models[1 - turn]) == {"cpu"}
        for model, weights in zip(models, expected, strict=True):
            for name, value in model.state_dict().items():
                assert torch.equal(value.cpu(), weights[name].cpu())
