"""Tensors and scalars travel together; equal content is equal bytes; damage is found."""

import numpy as np
import pytest
import safetensors.torch
import torch

from fastvideo.v1.dataset.objects.state_file import DamagedObject, pack_state, unpack_state, verify_state


def content() -> tuple[dict[str, torch.Tensor], dict]:
    tensors = {
        "latents": torch.randn(1, 4, 3, 5, 7)[..., ::2],
        "mask": torch.tensor([True, False]),
        "history": torch.randn(3, 5, dtype=torch.bfloat16),
        "index": torch.tensor(2**40),
        "nothing": torch.zeros(0, 3),
    }
    return tensors, {"step": 7, "sigma": 0.1, "prompt": "größer", "done": False, "seed": None, "orders": [1, 2]}


def test_everything_comes_back_to_the_bit() -> None:
    tensors, scalars = content()
    data = pack_state(tensors, scalars)
    found, found_scalars = unpack_state(data, "x")
    assert found_scalars == scalars and set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert set(safetensors.torch.load(data)) == set(tensors)  # any reader of the format can open it


def test_equal_content_is_equal_bytes_in_any_order() -> None:
    tensors, scalars = content()
    reordered = dict(reversed(tensors.items())), dict(reversed(scalars.items()))
    assert pack_state(*reordered) == pack_state(tensors, scalars)
    assert pack_state(tensors, scalars | {"step": 8}) != pack_state(tensors, scalars)


def test_a_flipped_bit_anywhere_is_found() -> None:
    data = pack_state(*content())
    for position in np.random.default_rng().integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        if bytes(damaged).rstrip() == data.rstrip():
            continue
        with pytest.raises(DamagedObject, match="the/object"):
            unpack_state(bytes(damaged), "the/object")


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_file_cut_short_is_found(length: int) -> None:
    with pytest.raises(DamagedObject):
        verify_state(pack_state(*content())[:length], "x")


def test_a_foreign_safetensors_file_is_not_taken_for_ours() -> None:
    with pytest.raises(DamagedObject):
        verify_state(safetensors.torch.save({"a": torch.zeros(2)}), "x")
