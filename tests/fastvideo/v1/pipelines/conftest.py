"""Frames to compare."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def assert_within_two() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Frames uint8 ``[t, h, w, c]`` against those of diffusers, ``[t, c, h, w]`` in [0, 1]: at most 2 of 255 apart."""

    def check(frames: torch.Tensor, expected: torch.Tensor) -> None:
        assert expected.std() > 0.002, "a flat video would agree with anything"
        difference = frames.float() - (expected * 255).round().permute(0, 2, 3, 1)
        assert difference.abs().max() <= 2

    return check
