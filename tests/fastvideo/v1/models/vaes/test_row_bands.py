"""Video decoded in bands of rows by 2 processes and by 4, against one process: float32, fresh weights and latents."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fastvideo.v1.distributed.communication import exchange_halo
from fastvideo.v1.distributed.group import ParallelGroup
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.distributed.parallel_state import (
    close_world,
    get_data_group,
    get_model_group,
    init_world,
)
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext, set_forward_context
from fastvideo.v1.models.vaes.base import VideoAutoencoder
from fastvideo.v1.models.vaes.hunyuan import AutoencoderKLHunyuanVideo, GroupNorm, HunyuanVAEConfig
from fastvideo.v1.models.vaes.row_bands import RowBands, get_bands, split_rows, use_bands
from fastvideo.v1.models.vaes.wan import AutoencoderKLWan, WanVAEConfig
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages import DecodingStage
from tests.fastvideo.v1.distributed.processes import TIMEOUT, run_processes

pytestmark = pytest.mark.xdist_group("processes")  # which all of them share

TOLERANCE = 1e-5  # max|a - b| / max|b|; measured here: under 2e-6
LAYOUTS = [ParallelLayout(cfg=2, ring=2), ParallelLayout(data=2, ulysses=2)]
WAN_21 = dict(latents_mean=(0.1,) * 16, latents_std=(1.5,) * 16, base_dim=8, num_res_blocks=1)
WAN_22 = dict(
    latents_mean=(0.1,) * 48, latents_std=(1.5,) * 48, z_dim=48, base_dim=8, decoder_base_dim=8, num_res_blocks=1,
    is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
)  # fmt: skip
HUNYUAN = dict(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4)

# Latents [b t h w] of several chunks or spans: uneven rows, a row for each of 4 ranks, fewer rows than 4 ranks.
CANVASES = [(2, 3, 5, 3), (1, 2, 4, 4), (1, 2, 3, 2)]
TILED_CANVAS = (1, 2, 5, 35)


def random_vaes() -> list[tuple[VideoAutoencoder, list[tuple[int, int, int, int]]]]:
    """Each autoencoder with its canvases; HunyuanVideo's have more than one span of frames, and one."""
    vaes: list[VideoAutoencoder] = [AutoencoderKLWan(WanVAEConfig.from_dict(values)) for values in (WAN_21, WAN_22)]
    vaes.append(AutoencoderKLHunyuanVideo(HunyuanVAEConfig.from_dict(HUNYUAN)))
    for vae in vaes:
        for name, parameter in vae.named_parameters():
            if parameter.ndim < 2 or name.endswith("gamma"):  # a fresh norm would hide a mistake in its parameters
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:  # PyTorch's weights shrink what goes through, and the norms enlarge the rounding with the rest
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        vae.decoder.conv_out.weight.mul_(0.1)  # few pixels are clamped, which would hide a mistake, too
    spans = [(1, 6, 5, 3), (2, 2, 4, 4), (1, 2, 3, 2)]
    return [(vaes[0], CANVASES), (vaes[1], CANVASES), (vaes[2], spans)]


def latents_of(vae: VideoAutoencoder, canvas: tuple[int, int, int, int]) -> torch.Tensor:
    b, *sizes = canvas
    return torch.randn(b, vae.post_quant_conv.in_channels, *sizes)


def assert_close(ours: torch.Tensor, expected: torch.Tensor, what: object) -> None:
    assert ours.shape == expected.shape, what
    error = ((ours - expected).abs().max() / expected.abs().max()).item()
    assert error < TOLERANCE, (what, error)


@contextmanager
def world(layout: ParallelLayout) -> Iterator[ParallelGroup]:
    init_world(layout, "cpu", TIMEOUT)
    yield get_model_group()
    close_world()


def check_decoders(layout: ParallelLayout) -> None:
    """What one process decodes is decoded before there is a world; every sample of the data axis has its own."""
    for vae, canvases in random_vaes():
        for canvas, tiled in [*((canvas, False) for canvas in canvases), (TILED_CANVAS, True)]:
            latents = [latents_of(vae, canvas) for _ in range(layout.data)]
            vae.use_tiling = tiled
            expected = [list(vae.decode_stream(sample)) for sample in latents]
            with world(layout) as group:
                sample = get_data_group().rank
                chunks = list(vae.decode_stream(latents[sample]))
                assert get_bands().group.size == 1, "the bands outlive a chunk"
            for place, (ours, chunk) in enumerate(zip(chunks, expected[sample], strict=True)):
                assert_close(ours, chunk, (type(vae).__name__, str(layout), canvas, tiled, place, group))


def check_bands_are_smaller(layout: ParallelLayout) -> None:
    """Every rank decodes its own rows, not all of them."""
    heights: list[int] = []
    for vae, canvases in random_vaes():
        heights.clear()
        vae.decoder.conv_in.register_forward_pre_hook(lambda _, inputs: heights.append(inputs[0].shape[-2]))
        with world(layout) as group:
            vae.decode(latents_of(vae, canvases[0]))
        rows = canvases[0][2]
        assert set(heights) == {rows // group.size + (group.rank < rows % group.size)}


def check_stage(layout: ParallelLayout) -> None:
    """The stage's frames, whole and as they come, are the same on every rank and those of one process."""
    for vae, canvases in random_vaes():
        latents = latents_of(vae, (1, *canvases[0][1:]))
        stage, args = DecodingStage(vae), FastVideoArgs()
        with set_forward_context():
            expected = stage(ForwardBatch(latents=latents), args).frames
        streamed: list[torch.Tensor] = []
        with world(layout):
            with set_forward_context():
                whole = stage(ForwardBatch(latents=latents), args).frames
            with set_forward_context(ForwardContext(on_frames=streamed.append)):
                assert stage(ForwardBatch(latents=latents), args).frames is None
        assert expected is not None and whole is not None and len(streamed) > 1
        assert (whole.int() - expected.int()).abs().max() <= 1  # a level, where rounding falls on the other side
        assert torch.equal(torch.cat(streamed), whole[0])


def check_group_norm(layout: ParallelLayout) -> None:
    """Over the bands a norm is exact where the mean is a hundred times the deviation, with another in every row."""
    x = torch.randn(2, 8, 3, 7, 5) + 100 + torch.arange(7.0)[:, None]
    norm = GroupNorm(2, 8)
    norm.weight.copy_(torch.randn(8))
    norm.bias.copy_(torch.randn(8))
    exact = torch.nn.functional.group_norm(x.double(), 2, norm.weight.double(), norm.bias.double(), norm.eps)
    with world(layout):
        bands = split_rows(7)
        with use_bands(bands):
            ours = norm(bands.take(x))
        error = ((bands.gather(ours, dim=-2).double() - exact).abs().max() / exact.abs().max()).item()
    assert error < 5e-5, error  # the input itself is rounded to 1e-5 of a deviation


def check_halo(group: ParallelGroup) -> None:
    """Each rank has a number of slices of its own; what it gets are the neighbours' nearest."""
    generator = torch.Generator().manual_seed(group.size)
    whole = [torch.randn(3, 2 + rank, 4, generator=generator).transpose(0, 2) for rank in range(group.size)]
    for dtype in (torch.float32, torch.bfloat16):
        parts = [part.to(dtype) for part in whole]
        before, after = exchange_halo(parts[group.rank], 1, group)
        assert (before is None) == (group.rank == 0) and (after is None) == (group.rank == group.size - 1)
        assert before is None or torch.equal(before, parts[group.rank - 1][:, -1:])
        assert after is None or torch.equal(after, parts[group.rank + 1][:, :1])


@torch.inference_mode()
def check_bands(rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    for layout in LAYOUTS:
        with world(layout) as group:
            check_halo(group)
        check_group_norm(layout)
        check_decoders(layout)
    check_bands_are_smaller(layout)
    check_stage(layout)


@pytest.mark.slow
def test_ranks_decode_what_one_process_does(fresh_seed):
    run_processes(4, check_bands, fresh_seed)


def test_alone_nothing_is_copied():
    bands, x = split_rows(5), torch.randn(1, 2, 3, 5, 4)
    assert bands.take(x) is x and bands.gather(x, dim=-2) is x and bands.fill_margins(x) is x
    assert exchange_halo(x, -2, ParallelGroup("model")) == (None, None)


@pytest.mark.parametrize(("num_rows", "num_ranks"), [(17, 4), (16, 4), (4, 4), (90, 7)])
def test_bands_are_as_even_as_can_be(num_rows, num_ranks, monkeypatch):
    monkeypatch.setattr(
        "fastvideo.v1.models.vaes.row_bands.get_model_group", lambda: ParallelGroup("model", 0, num_ranks)
    )
    sizes = split_rows(num_rows).sizes
    assert len(sizes) == num_ranks and sum(sizes) == num_rows and max(sizes) - min(sizes) <= 1
    rows = torch.arange(num_rows).view(1, 1, 1, -1, 1)
    taken = [RowBands(sizes, ParallelGroup("model", rank, num_ranks)).take(rows) for rank in range(num_ranks)]
    assert torch.equal(torch.cat(taken, dim=-2), rows)


def test_fewer_rows_than_ranks_are_decoded_whole_by_each(monkeypatch):
    monkeypatch.setattr("fastvideo.v1.models.vaes.row_bands.get_model_group", lambda: ParallelGroup("model", 2, 4))
    latents = torch.randn(1, 2, 1, 3, 4)
    assert split_rows(3).take(latents) is latents
