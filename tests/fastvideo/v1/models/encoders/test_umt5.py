"""UMT5EncoderModel against transformers' class of the same name, float32 unless a test says otherwise."""

import json
import statistics
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.distributed import ParallelGroup
from fastvideo.v1.layers import linear, vocab_parallel_embedding
from fastvideo.v1.layers.weight_loading import load_parameter
from fastvideo.v1.models.encoders import umt5
from fastvideo.v1.models.encoders.umt5 import UMT5Config, UMT5EncoderModel

TOLERANCE = 1e-4  # max|a - b| / max|b|, as asked of float32; measured here: under 1e-5
EMBEDDED_ENCODER = Path(EMBEDDED_MODEL, "text_encoder")
TINY = {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


@pytest.fixture(params=["random", "embedded"])
def reference(request) -> transformers.UMT5EncoderModel:
    if request.param == "embedded":
        config = transformers.UMT5Config(**json.loads((EMBEDDED_ENCODER / "config.json").read_text()))
        model = transformers.UMT5EncoderModel(config).float()
        model.load_state_dict(load_file(EMBEDDED_ENCODER / "model.safetensors"), strict=False)
    else:
        # A large factor: biases and norms that matter, and attention that is far from even.
        config = transformers.UMT5Config(**TINY, initializer_factor=2.0)
        model = transformers.UMT5EncoderModel(config)
    return model.eval()


@pytest.fixture
def encoder(reference, load_weights) -> UMT5EncoderModel:
    model = UMT5EncoderModel(UMT5Config.from_dict(reference.config.to_dict()))
    load_weights(model, reference.state_dict())
    return model


def random_tokens(reference, b: int, s: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask whose rows have each their own length."""
    tokens = torch.randint(reference.config.vocab_size, (b, s))
    lengths = torch.randint(1, s + 1, (b, 1))
    return tokens, (torch.arange(s) < lengths).long()


def test_full_size_checkpoint_fills_every_parameter(checkpoint_names):
    with torch.device("meta"):
        checkpoint = transformers.UMT5EncoderModel(transformers.UMT5Config(**XXL)).state_dict()
        ours = UMT5EncoderModel(UMT5Config(**XXL))
    places = checkpoint_names(ours, checkpoint)
    assert "shared.weight" in places
    assert "encoder.embed_tokens.weight" not in places
    sizes = dict.fromkeys((name for name, _ in ours.named_parameters()), 0)
    for name, (place, _) in places.items():
        sizes[place] += checkpoint[name].numel()
    assert sizes == {name: parameter.numel() for name, parameter in ours.named_parameters()}


@pytest.mark.parametrize(("b", "s"), [(1, 1), (1, 7), (2, 33), (3, 64), (1, 300)])
def test_hidden_states_match_transformers(encoder, reference, max_error, b, s):
    tokens, mask = random_tokens(reference, b, s)
    expected = reference(tokens, attention_mask=mask).last_hidden_state
    assert max_error(encoder(tokens, mask), expected) < TOLERANCE


def test_no_mask_means_no_padding(encoder, reference, max_error):
    tokens, _ = random_tokens(reference, 2, 20)
    assert max_error(encoder(tokens), reference(tokens).last_hidden_state) < TOLERANCE


def test_padding_changes_no_token(encoder, reference, max_error):
    tokens, _ = random_tokens(reference, 1, 9)
    padded = torch.cat([tokens, torch.zeros(1, 14, dtype=torch.long)], dim=1)
    mask = (torch.arange(23) < 9).long()[None]
    assert max_error(encoder(padded, mask)[:, :9], encoder(tokens)) < TOLERANCE


def test_a_row_without_tokens_gives_no_nan(encoder, reference):
    tokens, mask = random_tokens(reference, 2, 8)
    mask[0] = 0
    assert encoder(tokens, mask).isfinite().all()


def test_bfloat16_is_as_exact_as_transformers(encoder, reference, rms_error):
    inputs = [random_tokens(reference, 2, 40) for _ in range(8)]
    truth = [reference(*tokens_and_mask).last_hidden_state for tokens_and_mask in inputs]
    encoder.bfloat16()
    reference.bfloat16()
    ours, theirs = [], []
    for tokens_and_mask, expected in zip(inputs, truth, strict=True):
        ours.append(rms_error(encoder(*tokens_and_mask), expected))
        theirs.append(rms_error(reference(*tokens_and_mask).last_hidden_state, expected))
    print(f"bf16 RMS error: ours {statistics.median(ours):.2e}, transformers {statistics.median(theirs):.2e}")
    assert statistics.median(ours) <= 1.1 * statistics.median(theirs)


def test_each_rank_loads_its_own_heads(reference, encoder, load_weights, monkeypatch):
    shards = []
    for rank in range(2):
        group = ParallelGroup("tensor", rank=rank, size=2)
        for module in (umt5, linear, vocab_parallel_embedding):
            monkeypatch.setattr(module, "get_tp_group", lambda group=group: group)
        shard = UMT5EncoderModel(encoder.config)
        load_weights(shard, reference.state_dict())
        shards.append(shard.encoder.block[1].layer[0].SelfAttention)
    whole = encoder.encoder.block[1].layer[0].SelfAttention
    biases = [shard.relative_attention_bias.weight for shard in shards]
    assert torch.equal(torch.cat(biases, dim=1), whole.relative_attention_bias.weight)
    queries = [shard.qkv.weight.chunk(3)[0] for shard in shards]
    assert torch.equal(torch.cat(queries), whole.qkv.weight.chunk(3)[0])


@pytest.mark.parametrize("shape", [[1, 4], [32, 1], [32, 8]])
def test_a_position_bias_of_another_shape_is_refused(shape):
    bias = umt5.RelativePositionBias(num_buckets=32, num_heads=4)
    with pytest.raises(ValueError, match=rf"shape \{shape} in the checkpoint, \[32, 4] in the model"):
        load_parameter(bias.weight, torch.zeros(shape), 0)


def test_a_feed_forward_that_is_not_gated_is_refused():
    with pytest.raises(ValueError, match="feed_forward_proj='relu' is not supported"):
        UMT5Config(**TINY, feed_forward_proj="relu")
