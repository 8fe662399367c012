"""Fresh seeds, and models that tests run on: the embedded trained one, and a tiny random one written by diffusers."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL, PROMPT_LISTS
from fastvideo.v1.pipelines import registry

pytest_plugins = ["tests.data_sets", "tests.s3_servers", "tests.wan_variants"]


def pytest_configure() -> None:
    """One thread a process, those that tests start included: more wait for each other where two workers share cores."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file go to one worker, which makes what they share once; slow ones first, so that all end together."""
    num_slow: Counter[str] = Counter()
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(Path(__file__).parent))))
        num_slow[_group(item)] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -num_slow[_group(item)])


def _group(item: pytest.Item) -> str:
    (mark,) = item.iter_markers("xdist_group")
    return str(mark.args[0])


@pytest.fixture(autouse=True)
def fresh_seed() -> int:
    """Every test draws new inputs; the seed is in the captured output of a failure."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return seed


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Wan text-to-video directory with random weights: two layers, three patches of everything."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-wan"
    write_tiny_wan(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_hunyuan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A HunyuanVideo text-to-video directory with random weights: two layers of everything."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-hunyuan"
    write_tiny_hunyuan(folder)
    return str(folder)


@pytest.fixture(params=["random", "embedded"])
def wan_model(request: pytest.FixtureRequest) -> str:
    """Both models in turn."""
    return EMBEDDED_MODEL if request.param == "embedded" else request.getfixturevalue("tiny_wan")


@pytest.fixture
def image_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The embedded weights under a pipeline that takes an image as well: ``tests.image_pipeline``."""
    folder = tmp_path / "image-model"
    shutil.copytree(EMBEDDED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "TintedPipeline"}))
    location = "tests.image_pipeline:TintedPipeline"
    monkeypatch.setattr(registry, "_PIPELINES", registry._PIPELINES | {"TintedPipeline": location})
    return str(folder)


def write_tiny_wan(folder: Path) -> None:
    import diffusers
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(torch.seed() % 2**32)
    tokenizer = _unigram_tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=40,
            d_kv=12,
            d_ff=56,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=20,
        text_dim=40,
        freq_dim=24,
        ffn_dim=72,
        num_layers=2,
    )
    vae = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    diffusers.WanPipeline(tokenizer, text_encoder, vae, scheduler, transformer=transformer).save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"tokenizer": ["transformers", "T5TokenizerFast"]}))


def write_tiny_hunyuan(folder: Path) -> None:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    torch.manual_seed(torch.seed() % 2**32)
    tokenizer, tokenizer_2 = _llama_tokenizer(), _clip_tokenizer(folder.parent / "clip")
    text_encoder = LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_theta=500_000.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    text_encoder_2 = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer_2),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            eos_token_id=tokenizer_2.eos_token_id,
        )
    )
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=24,
        rope_axes_dim=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipeline = diffusers.HunyuanVideoPipeline(
        text_encoder, tokenizer, transformer, vae, scheduler, text_encoder_2, tokenizer_2
    )
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]  # a name that transformers 4 and 5 both know
    (folder / "model_index.json").write_text(json.dumps(index))


def _llama_tokenizer():
    """A byte-level tokenizer in which every word of HunyuanVideo's template is one token, as in Llama 3's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from fastvideo.v1.pipelines.stages.llama_text_encoding import PROMPT_TEMPLATE

    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<pad>",
    ]
    words = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    template = PROMPT_TEMPLATE.replace("{}", "")
    for token in special:
        template = template.replace(token, "\0")
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([piece for piece in template.split("\0") if piece] * 50, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token="<pad>", model_max_length=351
    )


def _clip_tokenizer(folder: Path):
    """CLIP's class on a vocabulary of single letters."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def _unigram_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5TokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train([PROMPT_LISTS["vbench"]], trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=96)
