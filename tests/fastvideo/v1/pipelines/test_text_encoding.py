"""The text stages: as diffusers and transformers encode, and never dependent on what shares a batch."""

import random

import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from fastvideo.data import EMBEDDED_MODEL, PROMPT_LISTS
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.encoders import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel
from fastvideo.v1.models.loader.component import load_component
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.models.loader.weights import assign_weights
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import export_sample, import_sample
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages import CLIPTextEncodingStage, LlamaTextEncodingStage, TextEncodingStage
from fastvideo.v1.pipelines.stages.llama_text_encoding import PROMPT_TEMPLATE
from fastvideo.v1.pipelines.stages.text_batches import Tokens

CPU = FastVideoArgs(model_path=EMBEDDED_MODEL, device="cpu")
TOLERANCE = 1e-4  # max|a - b| / max|b|
# Llama 3's, shortened: a word with what stands before it, one digit, marks, line ends, spaces.
WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
MARKERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>", "<|unknown|>"]


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Prompts of all lengths: none, some real ones, and one longer than any model takes."""
    with open(PROMPT_LISTS["vbench"], encoding="utf-8") as file:
        real = random.sample(file.read().splitlines(), 20)
    return ["", *real, "a {cat} & 2 dogs, ", " ".join(real * 9)]


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def max_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def word_tokenizer(texts: list[str], markers: list[str], ends: str, **settings) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that knows the words of ``texts``; ``ends`` is what it puts around a text, ``$A``."""
    split = pre_tokenizers.Split(WORDS, "isolated")
    words = {word for text in texts for part in text.split("|>") for word, _ in split.pre_tokenize_str(part)}
    vocabulary = {word: index for index, word in enumerate([*sorted(words - set(markers)), *markers])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(markers)
    special = [(name, vocabulary[name]) for name in markers]
    tokenizer.post_processor = processors.TemplateProcessing(single=ends, special_tokens=special)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|unknown|>", **settings)


@pytest.fixture(scope="module")
def hunyuan(prompts) -> diffusers.HunyuanVideoPipeline:
    """diffusers' pipeline with tiny text encoders and nothing else."""
    diffusers.logging.set_verbosity_error()  # it would print every prompt that it cuts
    llama_tokenizer = word_tokenizer([PROMPT_TEMPLATE, *prompts], MARKERS, "<|begin_of_text|> $A", pad_token="<|pad|>")
    llama = transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=len(llama_tokenizer),
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
    )
    # As CLIP's own: the end of a text has the highest id and is its padding, too.
    clip_tokenizer = word_tokenizer(
        prompts, ["<|unknown|>", "<s>", "</s>"], "<s> $A </s>", pad_token="</s>", model_max_length=77
    )
    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=len(clip_tokenizer) - 2,
            eos_token_id=len(clip_tokenizer) - 1,
            initializer_factor=4.0,
        )
    )
    return diffusers.HunyuanVideoPipeline(llama.eval(), llama_tokenizer, None, None, None, clip.eval(), clip_tokenizer)


@pytest.fixture(scope="module")
def llama_stage(hunyuan) -> LlamaTextEncodingStage:
    encoder = LlamaModel(LlamaConfig.from_dict(hunyuan.text_encoder.config.to_dict()))
    assign_weights(encoder, (("", *item) for item in hunyuan.text_encoder.state_dict().items()), "")
    return LlamaTextEncodingStage(encoder, hunyuan.tokenizer)


@pytest.fixture(scope="module")
def clip_stage(hunyuan) -> CLIPTextEncodingStage:
    encoder = CLIPTextModel(CLIPTextConfig.from_dict(hunyuan.text_encoder_2.config.to_dict()))
    assign_weights(encoder, (("", *item) for item in hunyuan.text_encoder_2.state_dict().items()), "")
    return CLIPTextEncodingStage(encoder, hunyuan.tokenizer_2)


@pytest.fixture(scope="module")
def t5_stage() -> TextEncodingStage:
    repository = ModelRepository(EMBEDDED_MODEL)
    encoder = load_component(repository, "text_encoder", "UMT5EncoderModel", CPU)
    return TextEncodingStage(encoder, load_component(repository, "tokenizer", "T5TokenizerFast", CPU))


def test_t5_embeddings_are_those_of_texts_padded_together(t5_stage, prompts):
    embeds, mask = t5_stage.encode(prompts)
    tokens = t5_stage.tokenizer(prompts, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    assert embeds.shape[:2] == (len(prompts), 64) and torch.equal(mask, tokens.attention_mask.bool())
    expected = t5_stage.text_encoder(tokens.input_ids, tokens.attention_mask) * mask[..., None]
    assert max_error(embeds, expected) < TOLERANCE
    assert not embeds[~mask].any()


def test_llama_embeddings_match_diffusers_where_there_is_text(hunyuan, llama_stage, prompts):
    expected, expected_mask = hunyuan._get_llama_prompt_embeds(prompts, DEFAULT_PROMPT_TEMPLATE, device="cpu")
    embeds, mask = llama_stage.encode(prompts)
    assert embeds.shape == (len(prompts), 256, 32) and torch.equal(mask, expected_mask.bool())
    assert mask[-1].all() and not mask[0].all(), "one prompt is cut, and one is short"
    assert max_error(embeds[mask], expected[mask]) < TOLERANCE
    assert not embeds[~mask].any()


def test_pooled_clip_embeddings_match_diffusers(hunyuan, clip_stage, prompts):
    expected = hunyuan._get_clip_prompt_embeds(prompts, device="cpu")
    assert max_error(clip_stage.encode(prompts), expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["t5", "llama", "clip"])
def test_a_text_has_the_same_bytes_whatever_shares_its_batch(kind, request, prompts):
    stage = request.getfixturevalue(f"{kind}_stage")

    def encode(texts: list[str]) -> list[torch.Tensor]:
        return list(stage.encode(texts) if kind == "clip" else stage.encode(texts)[0])

    alone = {text: encode([text])[0] for text in prompts}
    for size in (2, 5, len(prompts)):
        texts = random.sample(prompts, size) + random.choices(prompts, k=size)
        for text, embeds in zip(texts, encode(texts), strict=True):
            assert torch.equal(embeds, alone[text]), f"{text!r} among {texts}"


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("t5", "prompt_embeds"),
        ("t5", "negative_prompt_embeds"),
        ("llama", "prompt_embeds"),
        ("clip", "negative_pooled_prompt_embeds"),
    ],
)
def test_embeddings_that_are_not_finite_are_no_result(kind, field, request):
    embeds = torch.randn(2, 7, 5)
    embeds[1, 3, 2] = random.choice([torch.inf, -torch.inf, torch.nan])
    with pytest.raises(FloatingPointError, match=f"infinite {field}; try text_encoder_precision='float32'"):
        request.getfixturevalue(f"{kind}_stage").verify_output(ForwardBatch(**{field: embeds}), CPU)


def test_an_encoder_that_overflows_half_precision_is_refused_in_it():
    args = FastVideoArgs(device="cpu", text_encoder_precision="float16")
    with pytest.raises(ValueError, match="text_encoder cannot be float16: values of UMT5EncoderModel leave its range"):
        load_component(ModelRepository(EMBEDDED_MODEL), "text_encoder", "UMT5EncoderModel", args)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_text_has_the_same_bytes_on_a_gpu_whatever_shares_its_batch(prompts):
    repository, args = ModelRepository(EMBEDDED_MODEL), FastVideoArgs(device="cuda")
    encoder = load_component(repository, "text_encoder", "UMT5EncoderModel", args)
    stage = TextEncodingStage(encoder, load_component(repository, "tokenizer", "T5TokenizerFast", args))
    alone = {text: stage.encode([text])[0][0] for text in prompts}
    texts = random.choices(prompts, k=500)
    for text, embeds in zip(texts, stage.encode(texts)[0], strict=True):
        assert torch.equal(embeds, alone[text]), f"{text!r}"


def test_the_shape_of_a_call_follows_from_a_texts_own_length_alone():
    lengths = torch.randint(0, 101, (300,))
    lengths[:5] = torch.tensor([0, 1, 16, 17, 100])
    mask = (torch.arange(100) < lengths[:, None]).long()
    shapes, seen = {}, []
    for texts, ids, _ in Tokens(torch.zeros_like(mask), mask).batches(torch.device("meta")):
        assert 0 < len(texts) <= len(ids)
        for text in texts:
            length = min(100, max(1, -(-int(lengths[text]) // 16)) * 16)
            assert ids.shape[1] == length and shapes.setdefault(length, ids.shape) == ids.shape
        seen += texts
    assert sorted(seen) == list(range(300))


class TwoEncoders(ComposedPipelineBase):
    _required_config_modules = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    hands_on = {Phase.ENCODE: ("prompt_embeds", "prompt_mask", "pooled_prompt_embeds")}

    def create_pipeline_stages(self, fastvideo_args):
        self.add_stage("llama", LlamaTextEncodingStage(self.get_module("text_encoder"), self.get_module("tokenizer")))
        self.add_stage("clip", CLIPTextEncodingStage(self.get_module("text_encoder_2"), self.get_module("tokenizer_2")))


@pytest.mark.parametrize("negatives", [None, ["gray", "a {cat}"]])
def test_two_encoders_in_one_pipeline_encode_both_prompts_when_guided(llama_stage, clip_stage, prompts, negatives):
    modules = {
        "text_encoder": llama_stage.text_encoder,
        "tokenizer": llama_stage.tokenizer,
        "text_encoder_2": clip_stage.text_encoder,
        "tokenizer_2": clip_stage.tokenizer,
    }
    pipeline = TwoEncoders(CPU, [Phase.ENCODE], modules)
    sampling = pipeline.sampling_defaults().with_overrides(guidance_scale=4.0, negative_prompt="blurry")
    batch = ForwardBatch(prompt=prompts[1:3], negative_prompt=negatives, sampling=sampling)
    batch = pipeline.forward(batch)
    negatives = negatives or ["blurry"] * 2
    assert torch.equal(batch.prompt_embeds, llama_stage.encode(prompts[1:3])[0])
    assert torch.equal(batch.pooled_prompt_embeds, clip_stage.encode(prompts[1:3]))
    assert torch.equal(batch.negative_prompt_embeds, llama_stage.encode(negatives)[0])
    assert torch.equal(batch.negative_pooled_prompt_embeds, clip_stage.encode(negatives))
    restored = ForwardBatch(prompt=prompts[2:3])
    import_sample(restored, *export_sample(batch, pipeline.hands_on[Phase.ENCODE], 1))
    assert torch.equal(restored.prompt_embeds, batch.prompt_embeds[1:])
    assert torch.equal(restored.pooled_prompt_embeds, batch.pooled_prompt_embeds[1:])


def test_without_guidance_no_negative_prompt_is_encoded(clip_stage):
    sampling = TwoEncoders.default_sampling.with_overrides(guidance_scale=1.0)
    batch = clip_stage.forward(ForwardBatch(prompt=["a cat"], sampling=sampling), CPU)
    assert batch.pooled_prompt_embeds is not None and batch.negative_pooled_prompt_embeds is None


def test_a_tokenizer_that_splits_the_template_otherwise_is_refused(hunyuan):
    with pytest.raises(ValueError, match=r"makes \d+ tokens of HunyuanVideo's prompt template, not 95"):
        LlamaTextEncodingStage(None, hunyuan.tokenizer_2)
