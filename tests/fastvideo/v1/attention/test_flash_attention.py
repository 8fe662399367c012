"""FlashAttention against dense attention in float32, on a GPU that has it."""

import pytest
import torch

from fastvideo.v1.attention import LocalAttention, _Backend
from fastvideo.v1.attention.backends.flash_attn import FlashAttentionBackend, installed_version

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or installed_version() is None, reason="needs FlashAttention"),
]


@pytest.mark.parametrize("gain", [1.0, 6.0], ids=["flat", "peaky"])
@pytest.mark.parametrize(("s", "s_k"), [(1000, 1000), (640, 77)])
def test_flash_attention_is_as_exact_as_its_dtype(s, s_k, gain):
    query = torch.randn(2, s, 3, 128, device="cuda", dtype=torch.bfloat16) * gain
    key, value = (torch.randn(2, s_k, 3, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    layer = LocalAttention(3, 128)
    out = layer(query, key, value)
    assert isinstance(layer.backend, FlashAttentionBackend), "the fastest installed backend is chosen unasked"
    dense = LocalAttention(3, 128, supported_attention_backends=(_Backend.TORCH_SDPA,))
    exact = dense(query.float(), key.float(), value.float())
    assert (out.float() - exact).norm() / exact.norm() < 5e-3


def test_a_packed_projection_needs_no_copy():
    query, key, value = (
        torch.randn(1, 256, 3 * 3 * 64, device="cuda", dtype=torch.bfloat16).unflatten(-1, (9, 64)).chunk(3, dim=2)
    )
    layer = LocalAttention(3, 64)
    packed = layer(query, key, value)
    assert torch.equal(packed, layer(query.contiguous(), key.contiguous(), value.contiguous()))


def test_lack_of_memory_is_told_as_such():
    heads = torch.randn(1, 2**16, 64, 128, device="cuda", dtype=torch.bfloat16)
    spare = heads.nbytes // 2
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + spare) / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(torch.OutOfMemoryError):
            LocalAttention(64, 128)(heads, heads, heads)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
