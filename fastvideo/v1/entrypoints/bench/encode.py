"""`fastvideo bench encode`: real prompts through the full-size UMT5 encoder, as an encode job batches them."""

import json
import time
from importlib.resources import files
from typing import Any

import torch

from fastvideo.data import EMBEDDED_MODEL, PROMPT_LISTS
from fastvideo.v1.models.encoders.umt5 import UMT5EncoderModel
from fastvideo.v1.models.loader.component import build_model, load_tokenizer, resolve_device
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.pipelines.stages.text_encoding import TextEncodingStage


def bench_encode(batch_sizes: list[int], num_prompts: int) -> dict[str, Any]:
    """Prompts a second for each batch size; prompts are sorted by length, weights are random.

    The tokenizer is the embedded model's, whose small vocabulary makes more tokens of a prompt than UMT5's own: the
    figures are on the low side.
    """
    device = resolve_device("auto")
    config = json.loads((files("fastvideo.data") / "configs" / "umt5_xxl_encoder.json").read_text())
    model = build_model(UMT5EncoderModel, config, device, torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    tokenizer = load_tokenizer(ModelRepository(EMBEDDED_MODEL), "tokenizer")
    tokenizer.model_max_length = 512
    stage = TextEncodingStage(model, tokenizer)
    with open(PROMPT_LISTS["vbench"], encoding="utf-8") as file:
        prompts = sorted(file.read().splitlines()[:num_prompts], key=len)
    num_tokens = sum(len(ids) for ids in tokenizer(prompts).input_ids)
    rows = []
    for size in batch_sizes:
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        with torch.inference_mode():
            for batch in batches:
                stage.encode(batch)
            seconds = _time(stage, batches, device)
        rows.append({"batch_size": size, "seconds": seconds, "prompts_per_second": len(prompts) / seconds})
    return {"prompts": len(prompts), "tokens": num_tokens, "rows": rows}


def _time(stage: TextEncodingStage, batches: list[list[str]], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for batch in batches:
        stage.encode(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
