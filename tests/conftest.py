"""Models that tests run on: the embedded trained one, and a tiny random one written by diffusers."""

import json
from pathlib import Path

import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL, PROMPT_LISTS

pytest_plugins = ["tests.s3_servers"]


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Wan text-to-video directory with random weights: two layers, three patches of everything."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-wan"
    write_tiny_wan(folder)
    return str(folder)


@pytest.fixture(params=["random", "embedded"])
def wan_model(request: pytest.FixtureRequest) -> str:
    """Both models in turn."""
    return EMBEDDED_MODEL if request.param == "embedded" else request.getfixturevalue("tiny_wan")


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
