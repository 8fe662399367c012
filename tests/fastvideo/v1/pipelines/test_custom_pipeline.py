"""A user's own pipeline, stage and layers, written as the documentation writes them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.attention import DistributedAttention, LocalAttention, _Backend
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext, get_forward_context, set_forward_context
from fastvideo.v1.layers.linear import ColumnParallelLinear, RowParallelLinear
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.describe import describe_pipeline
from fastvideo.v1.pipelines.inputs import IMAGE_INPUT, TEXT_INPUT
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages import CLIPTextEncodingStage, InputValidationStage, PipelineStage
from tests.wan_variants import update_json

ARGS = FastVideoArgs(model_path=EMBEDDED_MODEL, device="cpu")


class MyPipeline(ComposedPipelineBase):
    _required_config_modules = ["text_encoder", "tokenizer", "vae", "transformer", "scheduler"]

    def initialize_pipeline(self, fastvideo_args):
        pass

    def create_pipeline_stages(self, fastvideo_args):
        self.add_stage("input_validation_stage", InputValidationStage())
        self.add_stage(
            "text_encoding_stage",
            CLIPTextEncodingStage(text_encoder=self.get_module("text_encoder"), tokenizer=self.get_module("tokenizer")),
        )


class MyStage(PipelineStage):
    def __init__(self, custom_module):
        super().__init__()
        self.custom_module = custom_module

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        batch.output_data = self.custom_module(batch.input_data)
        return batch


@dataclass(kw_only=True)
class MyBatch(ForwardBatch):
    input_data: torch.Tensor
    output_data: torch.Tensor | None = None


class MyAttentionBlock(nn.Module):
    def __init__(self, layer, h, n, d, backends):
        super().__init__()
        self.qkv_proj = ColumnParallelLinear(input_size=h, output_size=3 * h, bias=True, gather_output=False)
        self.out_proj = RowParallelLinear(input_size=h, output_size=h, bias=True, input_is_parallel=True)
        self.attn = layer(num_heads=n, head_size=d, causal=False, supported_attention_backends=backends)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.attn.num_heads, -1)) for part in self.qkv_proj(x).chunk(3, dim=-1))
        return self.out_proj(self.attn(q, k, v).flatten(-2))


def test_a_pipeline_of_two_stages_encodes_with_a_clip_text_encoder():
    from transformers import CLIPTextConfig, CLIPTextModel

    from fastvideo.v1.models.loader.component import load_tokenizer
    from fastvideo.v1.models.loader.repository import ModelRepository

    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=216,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            eos_token_id=1,
        )
    )
    tokenizer = load_tokenizer(ModelRepository(EMBEDDED_MODEL), "tokenizer")
    pipeline = MyPipeline(ARGS, [Phase.ENCODE], modules={"text_encoder": clip, "tokenizer": tokenizer})
    assert [entry.name for entry in pipeline.stages] == ["input_validation_stage", "text_encoding_stage"]
    batch = pipeline.forward(ForwardBatch(prompt=["a red circle moves left", "a white star"]))
    tokens = tokenizer(batch.prompt, padding="max_length", max_length=64, return_tensors="pt")
    expected = clip(tokens.input_ids, tokens.attention_mask).pooler_output
    torch.testing.assert_close(batch.pooled_prompt_embeds, expected)


def test_a_stage_may_have_fields_of_its_own():
    batch = MyBatch(input_data=torch.randn(2, 3))
    with set_forward_context():
        out = MyStage(nn.Linear(3, 4))(batch, ARGS)
    assert out.output_data.shape == (2, 4)


@pytest.mark.parametrize(
    ("layer", "backends"),
    [
        (LocalAttention, (_Backend.FLASH_ATTN, _Backend.TORCH_SDPA)),
        (DistributedAttention, (_Backend.SLIDING_TILE_ATTN, _Backend.FLASH_ATTN)),
    ],
)
def test_layers_make_an_attention_block(layer, backends):
    block = MyAttentionBlock(layer, h=24, n=3, d=8, backends=backends)
    for parameter in block.parameters():
        parameter.data.normal_(std=0.2)
    reference = nn.MultiheadAttention(24, 3, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = block.qkv_proj.weight.data, block.qkv_proj.bias.data
    reference.out_proj.weight.data, reference.out_proj.bias.data = block.out_proj.weight.data, block.out_proj.bias.data
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(block(x), reference(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-5)


def test_a_stage_without_a_phase_takes_that_of_the_stage_before_it_and_unbuilt_ones_are_dropped():
    class Decoding(MyStage):
        phase = Phase.DECODE

    class Pipeline(MyPipeline):
        _required_config_modules = []

        def create_pipeline_stages(self, fastvideo_args):
            self.add_stage("first", MyStage(None))
            self.add_stage("second", Decoding(None))
            self.add_stage("third", MyStage(None))
            self.add_stage("fourth", MyStage(None), phase=Phase.DENOISE)

    pipeline = Pipeline(ARGS, [Phase.DECODE])
    assert [entry.name for entry in pipeline.stages] == ["second", "third"]
    assert [entry.phase for entry in pipeline.all_stages] == [Phase.ENCODE, Phase.DECODE, Phase.DECODE, Phase.DENOISE]


def test_a_context_collects_seconds_and_exists_only_inside_a_call():
    with pytest.raises(RuntimeError, match="no forward context"):
        get_forward_context()
    with set_forward_context() as context:
        MyStage(nn.Identity())(MyBatch(input_data=torch.zeros(1)), ARGS)
        assert get_forward_context() is context
    assert set(context.timings) == {"MyStage"} and context.timings["MyStage"] >= 0


def test_custom_values_travel_between_phases():
    from fastvideo.v1.pipelines.phase_state import export_sample, import_sample

    batch = ForwardBatch(prompt=["a", "b"], custom={"mood": torch.tensor([[1.0], [2.0]]), "strength": 0.5})
    restored = ForwardBatch(prompt=["b"])
    import_sample(restored, *export_sample(batch, (), 1))
    assert torch.equal(restored.custom["mood"], torch.tensor([[2.0]])) and restored.custom["strength"] == 0.5


def test_a_part_of_a_request_runs_the_stages_that_read_no_more():
    class Text(MyStage):
        reads = TEXT_INPUT

    class Picture(MyStage):
        reads = IMAGE_INPUT

    class Pipeline(MyPipeline):
        _required_config_modules = []
        image_use = "required"

        def create_pipeline_stages(self, fastvideo_args):
            self.add_stage("validation", InputValidationStage(image=self.image_use))
            self.add_stage("text", Text(lambda data: [*data, "text"]), Phase.ENCODE)
            self.add_stage("picture", Picture(lambda data: [*data, "picture"]))

    def ran(inputs, **request):
        pipeline.forward(batch := MyBatch(input_data=[], **request), ForwardContext(inputs=inputs))
        return batch.output_data

    pipeline = Pipeline(ARGS, [Phase.ENCODE])
    image = torch.zeros(2, 2, 3, dtype=torch.uint8)
    assert ran(TEXT_INPUT, prompt=["a", "b"]) == ["text"]
    assert ran(IMAGE_INPUT, image=[image]) == ["picture"]
    assert ran(None, prompt=["a"], image=[image]) == ["picture"]
    with pytest.raises(ValueError, match="must be uint8"):
        ran(IMAGE_INPUT, image=[image.float()])


def test_a_stage_that_reads_text_and_image_at_once_is_told_when_planning(image_model, monkeypatch):
    monkeypatch.setattr("tests.image_pipeline.TintEncodingStage.reads", ("prompt", "image"))
    with pytest.raises(ValueError, match=r"tint_encoding_stage reads prompt, image: .* make two stages of it"):
        describe_pipeline(image_model)


def test_a_component_that_nothing_serves_is_told_when_planning(image_model):
    update_json(Path(image_model) / "model_index.json", text_encoder=["transformers", "MT5EncoderModel"])
    with pytest.raises(ValueError, match="no model serves 'MT5EncoderModel'"):
        describe_pipeline(image_model)
    update_json(Path(image_model) / "model_index.json", text_encoder=[None, None])
    with pytest.raises(ValueError, match=r"model_index\.json names no text_encoder, which TintedPipeline needs"):
        describe_pipeline(image_model)


def test_a_pipeline_that_reads_an_image_must_say_how_it_uses_it(image_model, monkeypatch):
    monkeypatch.setattr("tests.image_pipeline.TintedPipeline.image_use", "refused")
    with pytest.raises(ValueError, match=r"tint_encoding_stage reads an image, but .* say 'required' or 'optional'"):
        describe_pipeline(image_model)
