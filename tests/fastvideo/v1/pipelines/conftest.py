"""Tiny checkpoints of the Wan family, made of the text-to-video one by exchanging components; frames to compare."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

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


@pytest.fixture
def assert_within_two() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Frames uint8 ``[t, h, w, c]`` against those of diffusers, ``[t, c, h, w]`` in [0, 1]: at most 2 of 255 apart."""

    def check(frames: torch.Tensor, expected: torch.Tensor) -> None:
        assert expected.std() > 0.002, "a flat video would agree with anything"
        difference = frames.float() - (expected * 255).round().permute(0, 2, 3, 1)
        assert difference.abs().max() <= 2

    return check
