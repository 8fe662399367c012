"""LlamaModel against transformers' class of the same name, float32 unless a test says otherwise."""

import statistics

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from fastvideo.v1.distributed import ParallelGroup
from fastvideo.v1.layers import linear, vocab_parallel_embedding
from fastvideo.v1.models.encoders import llama
from fastvideo.v1.models.encoders.llama import LlamaConfig, LlamaModel

TOLERANCE = 1e-4  # max|a - b| / max|b|
TINY = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


class ExactRotary(LlamaRotaryEmbedding):
    """The reference's tables from angles in float64, as ours are.

    Its own angles are float32 products: off by 1e-5 at position 300, which four layers of wide weights can make 2e-4.
    """

    def forward(self, x, position_ids):
        exponents = torch.arange(len(self.inv_freq), dtype=torch.float64) / len(self.inv_freq)
        frequencies = self.config.rope_parameters["rope_theta"] ** -exponents
        angles = (position_ids.double()[..., None] * frequencies).repeat(1, 1, 2)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def make_reference(**settings) -> transformers.LlamaModel:
    # Wide weights: attention that is far from even, so that positions matter.
    model = transformers.LlamaModel(transformers.LlamaConfig(**TINY, initializer_range=0.3, **settings))
    model.rotary_emb = ExactRotary(model.config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(
    params=[
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"head_dim": 12, "attention_bias": True, "mlp_bias": True},
    ],
    ids=["theta", "head_dim-biases"],
)
def reference(request) -> transformers.LlamaModel:
    return make_reference(**request.param)


@pytest.fixture
def encoder(reference, load_weights) -> LlamaModel:
    model = LlamaModel(LlamaConfig.from_dict(reference.config.to_dict()))
    load_weights(model, reference.state_dict())
    return model


def random_tokens(b: int, s: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask whose rows have each their own length."""
    return torch.randint(100, (b, s)), (torch.arange(s) < torch.randint(1, s + 1, (b, 1))).long()


def hidden_states(reference, tokens, mask, skip_layers):
    return reference(tokens, mask, output_hidden_states=True).hidden_states[-(skip_layers + 1)]


@pytest.mark.parametrize("skip_layers", [0, 1, 2, 4])
@pytest.mark.parametrize(("b", "s"), [(1, 1), (3, 33), (1, 300)])
def test_hidden_states_of_any_depth_match_transformers(encoder, reference, max_error, b, s, skip_layers):
    tokens, mask = random_tokens(b, s)
    expected = hidden_states(reference, tokens, mask, skip_layers)
    assert max_error(encoder(tokens, mask, skip_layers), expected) < TOLERANCE


def test_no_mask_means_no_padding(encoder, reference, max_error):
    tokens, _ = random_tokens(2, 20)
    assert max_error(encoder(tokens), reference(tokens).last_hidden_state) < TOLERANCE


def test_layers_that_are_not_needed_do_not_run(encoder):
    calls = []
    for index, layer in enumerate(encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    encoder(torch.zeros(1, 5, dtype=torch.long), skip_layers=2)
    assert calls == [0, 1]


def test_a_row_without_tokens_gives_no_nan(encoder):
    tokens, mask = random_tokens(2, 8)
    mask[0] = 0
    assert encoder(tokens, mask).isfinite().all()


def test_bfloat16_is_as_exact_as_transformers(encoder, reference, rms_error):
    inputs = [(tokens, torch.ones_like(tokens)) for tokens, _ in (random_tokens(2, 40) for _ in range(8))]
    truth = [hidden_states(reference, *arguments, 2) for arguments in inputs]
    encoder.bfloat16()
    reference.bfloat16()
    ours, theirs = [], []
    for arguments, expected in zip(inputs, truth, strict=True):
        ours.append(rms_error(encoder(*arguments, 2), expected))
        theirs.append(rms_error(hidden_states(reference, *arguments, 2), expected))
    assert statistics.median(ours) <= 1.1 * statistics.median(theirs)


def test_checkpoints_of_both_layouts_load_and_what_is_not_needed_is_ignored(encoder, reference, load_weights):
    checkpoint = {f"model.{name}": tensor for name, tensor in reference.state_dict().items()}
    checkpoint |= {
        "lm_head.weight": torch.zeros(100, 48),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }
    other = LlamaModel(encoder.config)
    load_weights(other, checkpoint)
    tokens, mask = random_tokens(2, 12)
    assert torch.equal(other(tokens, mask), encoder(tokens, mask))


def test_ranks_hold_query_heads_with_their_key_heads_and_add_up_to_the_whole(reference, encoder, monkeypatch):
    from fastvideo.v1.models.loader.weights import assign_weights

    x, visible = torch.randn(2, 7, 48), torch.ones(1, 1, 7, 7, dtype=torch.bool).tril()
    rotary = llama.rotary_tables(7, encoder.config.head_size, encoder.config.theta, x.device)
    for module in (linear, vocab_parallel_embedding):
        monkeypatch.setattr(module, "all_reduce", lambda tensor, group: tensor)
    partial = []
    for rank in range(2):
        group = ParallelGroup("tensor", rank=rank, size=2)
        for module in (llama, linear, vocab_parallel_embedding):
            monkeypatch.setattr(module, "get_tp_group", lambda group=group: group)
        shard = LlamaModel(encoder.config)
        assign_weights(shard, (("reference", *item) for item in reference.state_dict().items()), "reference")
        partial.append(shard.layers[1].self_attn(x, rotary, visible))
    torch.testing.assert_close(sum(partial), encoder.layers[1].self_attn(x, rotary, visible), rtol=1e-4, atol=1e-4)


def test_key_heads_are_never_cut(monkeypatch):
    group = ParallelGroup("tensor", rank=0, size=3)
    for module in (llama, linear, vocab_parallel_embedding):
        monkeypatch.setattr(module, "get_tp_group", lambda: group)
    with pytest.raises(ValueError, match="num_key_value_heads=2 must be divisible by the tensor size 3"):
        LlamaModel(LlamaConfig(**TINY))


def test_theta_is_read_where_either_version_of_transformers_writes_it():
    assert LlamaConfig.from_dict({**TINY, "rope_theta": 5e5, "rope_scaling": None}).theta == 5e5
    assert LlamaConfig.from_dict({**TINY, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}).theta == 5e5
    assert LlamaConfig.from_dict(TINY).theta == 1e4


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
    ],
)
def test_a_scaling_of_positions_that_is_not_there_is_refused(settings):
    with pytest.raises(ValueError, match=r"rope_\w+ asks for rope_type 'linear', which is not supported"):
        LlamaConfig(**TINY, **settings)
