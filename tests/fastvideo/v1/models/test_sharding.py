"""Models whose weights two processes share, against the same models whole in one."""

import gc
import statistics
from dataclasses import asdict

import pytest
import torch
from torch.distributed.tensor import DTensor

from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.distributed.parallel_state import close_world, get_replica_group, init_world
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.layers.vocab_parallel_embedding import VocabParallelEmbedding
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.loader.adapter import set_adapter
from fastvideo.v1.models.loader.component import build_model, load_component
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.models.sharding import shard_blocks
from tests.fastvideo.v1.distributed.processes import TIMEOUT, run_processes
from tests.fastvideo.v1.models.travelling_models import Case, call, draw_cases, draw_checkpoint, fill
from tests.fastvideo.v1.models.vaes.test_row_bands import latents_of, random_vaes

pytestmark = pytest.mark.xdist_group("processes")  # which all of them share

CPU, META = torch.device("cpu"), torch.device("meta")


def sharded_parameters(model: Model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}


def parameters_to_shard(model: Model) -> set[str]:
    units = [*model.blocks_in_order(), *(m for m in model.modules() if isinstance(m, VocabParallelEmbedding))]
    inside = {id(parameter) for unit in units for parameter in unit.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}


def local_bytes(model: Model) -> int:
    return sum(p.to_local().nbytes if isinstance(p, DTensor) else p.nbytes for p in model.parameters())


def live_bytes() -> int:
    """Bytes of the storages that tensors of this process hold."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter) and x.device == CPU]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def check_model(case: Case, dtype: torch.dtype) -> None:
    whole = build_model(case.model_class, case.config, CPU, dtype)
    expected_names = parameters_to_shard(whole)
    checkpoint = draw_checkpoint(whole)
    fill(whole, checkpoint)
    sharded = build_model(case.model_class, case.config, META, dtype)
    shard_blocks(sharded, get_replica_group(), CPU)
    fill(sharded, checkpoint, reverse=True)
    assert sharded_parameters(sharded) == expected_names and expected_names
    with torch.inference_mode():
        expected = call(whole, case)
        assert torch.isfinite(expected).all() and expected.std() > 0
        for _ in range(2):
            assert torch.equal(call(sharded, case), expected)
            assert sharded_parameters(sharded) == expected_names, "blocks are freed after their use"
    # An odd number of rows leaves the first rank one more than half.
    kept, parameters = local_bytes(sharded), dict(whole.named_parameters())
    in_blocks = sum(parameters[name].nbytes for name in expected_names)
    outside = local_bytes(whole) - in_blocks
    rows = sum(parameters[name][:1].nbytes for name in expected_names)
    assert abs(kept - outside - in_blocks / 2) <= rows / 2


def check_gathered_blocks(seed: int) -> None:
    """While a block runs there are it, its buffer and that of the next, whatever their number."""
    case = draw_cases(seed)["wan"]
    model = build_model(case.model_class, case.config | {"num_layers": 8}, META, torch.float32)
    block_bytes = sum(p.nbytes for p in model.blocks_in_order()[0].parameters())
    shard_blocks(model, get_replica_group(), CPU)
    for parameter in model.parameters():
        (parameter.to_local() if isinstance(parameter, DTensor) else parameter).normal_()
    call(model, case)
    before, peaks = live_bytes(), []
    for block in model.blocks_in_order():
        block.ffn.down.register_forward_hook(lambda *_: peaks.append(live_bytes() - before))
    call(model, case)
    # The median, since a thread of gloo's may hold a buffer for a moment after its use.
    assert len(peaks) == 8 and statistics.median(peaks) < 3.5 * block_bytes, (peaks, block_bytes)


def check_loader(checkpoint: str) -> None:
    args = FastVideoArgs(device="cpu", num_gpus=2, cfg_size=2, shard_weights=True)
    model = load_component(ModelRepository(checkpoint), "transformer", "WanTransformer3DModel", args)
    whole = load_component(
        ModelRepository(checkpoint), "transformer", "WanTransformer3DModel", FastVideoArgs(device="cpu")
    )
    for (name, part), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(part.full_tensor() if isinstance(part, DTensor) else part, expected), name
    assert local_bytes(model) < 0.7 * local_bytes(whole)
    with pytest.raises(ValueError, match=r"shard_weights.* can only be merged into them: lora_path='anything'"):
        set_adapter(model, "anything", 1.0, torch.device("cpu"))


def check_autoencoders(seed: int) -> None:
    """Each rank with its band of rows and half of the blocks, against its band with all of them."""
    torch.manual_seed(seed)  # ranks that have drawn parts of different sizes draw the same from here on
    for vae, canvases in random_vaes():
        sharded = build_model(type(vae), asdict(vae.config), META, torch.float32)
        shard_blocks(sharded, get_replica_group(), CPU)
        fill(sharded, {name: parameter.data for name, parameter in vae.named_parameters()})
        latents = latents_of(vae, canvases[0])
        with torch.inference_mode():
            video = vae.decode(latents)
            for _ in range(2):
                assert torch.equal(sharded.decode(latents), video), "the same bytes"
            assert torch.equal(sharded.encode(video), vae.encode(video))
        assert local_bytes(sharded) < 0.6 * local_bytes(vae)


def check_all(rank: int, seed: int, checkpoint: str) -> None:
    layout = ParallelLayout(cfg=2)
    init_world(layout, "cpu", TIMEOUT)
    for dtype in (torch.float32, torch.bfloat16):
        for name, case in draw_cases(seed).items():
            print(f"rank {rank}: {name}, {dtype}")
            check_model(case, dtype)
    check_gathered_blocks(seed)
    check_autoencoders(seed)
    check_loader(checkpoint)
    close_world()


@pytest.mark.slow
def test_two_processes_with_half_the_weights_each_compute_the_same_bytes(fresh_seed, tiny_wan):
    run_processes(2, check_all, fresh_seed, tiny_wan)


@pytest.mark.parametrize("settings", [{}, {"num_gpus": 4}, {"num_gpus": 4, "tp_size": 2}])
def test_processes_that_do_not_share_a_sample_share_no_weights(settings):
    with pytest.raises(ValueError, match=r"shard_weights=True .* which is 1 in layout .* set sp_size or cfg_size"):
        FastVideoArgs(**settings, shard_weights=True)


def test_what_keeps_weights_away_comes_alone():
    with pytest.raises(ValueError, match="shard_weights=True and layer_offload=True exclude each other"):
        FastVideoArgs(num_gpus=2, sp_size=2, shard_weights=True, layer_offload=True)
    with pytest.raises(ValueError, match="shard_weights=True and quantization='fp8' exclude each other"):
        FastVideoArgs(num_gpus=2, sp_size=2, shard_weights=True, quantization="fp8")
