"""Tiny checkpoints of the Wan family, made of the text-to-video one by exchanging components."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

Variant = Callable[..., str]


@pytest.fixture(scope="session")
def variant_of_wan(tiny_wan: str, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """Writes a copy of ``tiny_wan`` with other ``components`` and other values in ``model_index.json``; its path."""

    def write(components: dict[str, Any], **index: Any) -> str:
        folder = tmp_path_factory.mktemp("checkpoints") / "variant"
        shutil.copytree(tiny_wan, folder)
        for name, component in components.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            component.save_pretrained(folder / name)
            library = type(component).__module__.split(".")[0]
            index[name] = [library, type(component).__name__.removesuffix("Pil")]
        # diffusers' image-to-video pipelines count on texts of 512 tokens.
        update_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=512)
        update_json(folder / "model_index.json", **index)
        return str(folder)

    return write


def update_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="session")
def tiny_transformer() -> Callable[..., diffusers.WanTransformer3DModel]:
    """A transformer like that of ``tiny_wan`` with other ``sizes``, strong enough to tell its inputs apart."""

    def build(**sizes: Any) -> diffusers.WanTransformer3DModel:
        model = diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=20, text_dim=40, freq_dim=24, ffn_dim=72, num_layers=2, **sizes
        )
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    return build


@pytest.fixture(scope="session")
def wan_22_vae() -> Callable[[], diffusers.AutoencoderKLWan]:
    """A small autoencoder of Wan2.2's TI2V."""

    def build() -> diffusers.AutoencoderKLWan:
        return diffusers.AutoencoderKLWan(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=48,
            num_res_blocks=1,
            latents_mean=torch.randn(48).tolist(),
            latents_std=(torch.rand(48) + 0.5).tolist(),
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        )

    return build


@pytest.fixture(scope="session")
def wan21_i2v(variant_of_wan, tiny_transformer) -> str:
    clip = CLIPVisionConfig(
        hidden_size=28, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
    )
    components = {
        "transformer": tiny_transformer(in_channels=36, image_dim=28, added_kv_proj_dim=40),
        "image_encoder": CLIPVisionModelWithProjection(clip),  # as published, though nothing projects
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
    }
    return variant_of_wan(components, _class_name="WanImageToVideoPipeline")


@pytest.fixture(scope="session")
def wan22_i2v(variant_of_wan, tiny_transformer) -> str:
    components = {name: tiny_transformer(in_channels=36) for name in ("transformer", "transformer_2")}
    nothing = [None, None]
    return variant_of_wan(
        components,
        _class_name="WanImageToVideoPipeline",
        boundary_ratio=0.9,
        image_encoder=nothing,
        image_processor=nothing,
    )


@pytest.fixture(scope="session")
def wan22_ti2v(variant_of_wan, tiny_transformer, wan_22_vae) -> str:
    components = {"transformer": tiny_transformer(in_channels=48, out_channels=48), "vae": wan_22_vae()}
    return variant_of_wan(components, expand_timesteps=True)
