"""CLIPTextModel against transformers' class of the same name, float32 unless a test says otherwise."""

import statistics

import pytest
import torch
import transformers

from fastvideo.v1.models.encoders.clip_text import CLIPTextConfig, CLIPTextModel

TOLERANCE = 1e-4  # max|a - b| / max|b|
EOS = 90
TINY = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
}


@pytest.fixture(params=[("quick_gelu", EOS), ("gelu", EOS), ("quick_gelu", 2)], ids=str)
def reference(request) -> transformers.CLIPTextModel:
    activation, eos = request.param
    # A large factor: positions and norms that matter, and attention that is far from even.
    config = transformers.CLIPTextConfig(**TINY, hidden_act=activation, eos_token_id=eos, initializer_factor=4.0)
    model = transformers.CLIPTextModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3)
    return model


@pytest.fixture
def encoder(reference, load_weights) -> CLIPTextModel:
    model = CLIPTextModel(CLIPTextConfig.from_dict(reference.config.to_dict()))
    load_weights(model, reference.state_dict())
    return model


def random_tokens(b: int, s: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of different lengths, each ended by the highest id and padded with it, as CLIP's tokenizer pads."""
    lengths = torch.randint(1, s + 1, (b, 1))
    position = torch.arange(s)
    tokens = torch.randint(EOS, (b, s)).masked_fill(position >= lengths - 1, EOS)
    return tokens, (position < lengths).long()


@pytest.mark.parametrize(("b", "s"), [(1, 1), (2, 9), (4, 40)])
@pytest.mark.parametrize("masked", [True, False])
def test_hidden_states_and_pooled_output_match_transformers(encoder, reference, max_error, b, s, masked):
    tokens, mask = random_tokens(b, s)
    arguments = (tokens, mask) if masked else (tokens,)
    ours, expected = encoder(*arguments), reference(*arguments)
    assert max_error(ours.last_hidden_state, expected.last_hidden_state) < TOLERANCE
    assert max_error(ours.pooler_output, expected.pooler_output) < TOLERANCE


def test_bfloat16_is_as_exact_as_transformers(encoder, reference, rms_error):
    inputs = [random_tokens(4, 40)[0] for _ in range(8)]
    truth = [reference(tokens).pooler_output for tokens in inputs]
    encoder.bfloat16()
    reference.bfloat16()
    pairs = list(zip(inputs, truth, strict=True))
    ours = statistics.median(rms_error(encoder(tokens).pooler_output, expected) for tokens, expected in pairs)
    theirs = statistics.median(rms_error(reference(tokens).pooler_output, expected) for tokens, expected in pairs)
    assert ours <= 1.1 * theirs


def test_checkpoints_of_both_layouts_load_and_what_is_not_needed_is_ignored(encoder, reference, load_weights):
    checkpoint = {f"text_model.{name}": tensor for name, tensor in reference.state_dict().items()}
    checkpoint |= {
        "text_model.embeddings.position_ids": torch.arange(40)[None],
        "text_projection.weight": torch.zeros(48, 48),
    }
    other = CLIPTextModel(encoder.config)
    load_weights(other, checkpoint)
    tokens, mask = random_tokens(2, 12)
    assert torch.equal(other(tokens, mask).pooler_output, encoder(tokens, mask).pooler_output)


def test_more_tokens_than_positions_are_refused(encoder):
    with pytest.raises(ValueError, match="41 tokens, but this model has 40 positions"):
        encoder(torch.zeros(1, 41, dtype=torch.long))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="hidden_act='relu' is not supported; CLIP has quick_gelu, gelu"):
        CLIPTextConfig(**TINY, hidden_act="relu")
