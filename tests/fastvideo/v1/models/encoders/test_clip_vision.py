"""CLIPVisionModel against transformers' class of the same name, float32 unless a test says otherwise."""

import statistics

import pytest
import torch
import transformers

from fastvideo.v1.models.encoders.clip_vision import CLIPVisionConfig, CLIPVisionModel

TOLERANCE = 1e-4  # max|a - b| / max|b|
SIZE = 42
TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": 14,
}


@pytest.fixture(params=["gelu", "quick_gelu"])
def reference(request) -> transformers.CLIPVisionModel:
    # A large factor: positions and norms that matter, and attention that is far from even.
    model = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**TINY, hidden_act=request.param, initializer_factor=4.0)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def encoder(reference, load_weights) -> CLIPVisionModel:
    model = CLIPVisionModel(CLIPVisionConfig.from_dict(reference.config.to_dict()))
    load_weights(model, reference.state_dict())
    return model


@pytest.mark.parametrize("skip_layers", [0, 1, 2, 3])
def test_hidden_states_of_any_depth_match_transformers(encoder, reference, max_error, skip_layers):
    pixels = torch.randn(2, 3, SIZE, SIZE)
    expected = reference(pixels, output_hidden_states=True).hidden_states[-(skip_layers + 1)]
    assert max_error(encoder(pixels, skip_layers), expected) < TOLERANCE


def test_layers_that_are_not_needed_do_not_run(encoder):
    calls = []
    for index, layer in enumerate(encoder.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    encoder(torch.randn(1, 3, SIZE, SIZE), skip_layers=1)
    assert calls == [0, 1]


def test_bfloat16_is_as_exact_as_transformers(encoder, reference, rms_error):
    images = [torch.randn(2, 3, SIZE, SIZE) for _ in range(8)]
    truth = [reference(pixels, output_hidden_states=True).hidden_states[-2] for pixels in images]
    encoder.bfloat16()
    encoder.dtype = torch.bfloat16  # as the loader sets it
    reference.bfloat16()
    ours, theirs = [], []
    for pixels, expected in zip(images, truth, strict=True):
        ours.append(rms_error(encoder(pixels, skip_layers=1), expected))
        theirs.append(rms_error(reference(pixels, output_hidden_states=True).hidden_states[-2], expected))
    assert statistics.median(ours) <= 1.1 * statistics.median(theirs)


def test_checkpoints_of_both_layouts_load_and_what_is_not_needed_is_ignored(encoder, reference, load_weights):
    checkpoint = {f"vision_model.{name}": tensor for name, tensor in reference.state_dict().items()}
    checkpoint |= {
        "vision_model.embeddings.position_ids": torch.arange(10)[None],
        "visual_projection.weight": torch.zeros(48, 48),
    }
    other = CLIPVisionModel(encoder.config)
    load_weights(other, checkpoint)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    assert torch.equal(other(pixels), encoder(pixels))


def test_images_of_another_size_are_refused(encoder):
    with pytest.raises(ValueError, match="images of 42x56 pixels; this model takes 42x42"):
        encoder(torch.zeros(1, 3, 42, 56))
