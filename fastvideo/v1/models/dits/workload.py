"""What a diffusion transformer has to do for one video, told from its ``config.json``; arithmetic without torch.

A matrix product of [m, k] by [k, n] counts 2 m k n floating-point operations (PaLM, arXiv 2204.02311, appendix B);
dense attention of s queries over l keys counts 4 s l d for a width of d. Element-wise work is not counted.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fastvideo.v1.distributed.cost import Workload

WAN_TEXT_TOKENS, WAN_IMAGE_TOKENS = 512, 257
HUNYUAN_TEXT_TOKENS = 90  # of a prompt of middling length, padding cut off


def dit_workload(
    config: Mapping[str, Any], latent_size: tuple[int, int, int], weight_bytes: float, num_branches: int = 1
) -> Workload | None:
    """One step on latents of ``latent_size`` (t, h, w); None for an architecture that is not ours."""
    make = _WORKLOADS.get(config.get("_class_name", ""))
    return None if make is None else make(config, latent_size, weight_bytes, num_branches)


def _wan(
    config: Mapping[str, Any], latent_size: tuple[int, int, int], weight_bytes: float, num_branches: int
) -> Workload:
    (t, h, w), (pt, ph, pw), text = latent_size, config["patch_size"], WAN_TEXT_TOKENS
    tokens, layers = (t // pt) * (h // ph) * (w // pw), config["num_layers"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    products = 2 * tokens * width * (6 * width + 2 * config["ffn_dim"]) + 4 * text * width * width
    return Workload(
        matrix_flops=layers * products,
        attention_flops=layers * 4 * tokens * (tokens + text) * width,
        tokens=tokens,
        joint_text=0,
        width=width,
        num_heads=config["num_attention_heads"],
        num_layers=layers,
        num_sums=3 * layers,  # self-attention, cross-attention, feed-forward
        num_norm_sums=3 * layers,  # queries and keys of self-attention, queries of cross-attention
        output_values=(config.get("out_channels") or config["in_channels"]) * t * h * w,
        kept_values=2 * layers * (text + (WAN_IMAGE_TOKENS if config.get("image_dim") else 0)) * width,
        weight_bytes=weight_bytes,
        num_branches=num_branches,
    )


def _hunyuan(
    config: Mapping[str, Any], latent_size: tuple[int, int, int], weight_bytes: float, num_branches: int
) -> Workload:
    (t, h, w), space, time = latent_size, config["patch_size"], config["patch_size_t"]
    video, text = (t // time) * (h // space) * (w // space), HUNYUAN_TEXT_TOKENS
    tokens, layers = video + text, config["num_layers"] + config["num_single_layers"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    products = 2 * tokens * width * width * (4 + 2 * config["mlp_ratio"])
    return Workload(
        matrix_flops=layers * products,
        attention_flops=layers * 4 * tokens * tokens * width,
        tokens=video,
        joint_text=text,
        width=width,
        num_heads=config["num_attention_heads"],
        num_layers=layers,
        num_sums=2 * config["num_layers"] + config["num_single_layers"],  # the text's beside the video's, as one
        num_norm_sums=0,
        output_values=config["out_channels"] * t * h * w,
        kept_values=0,  # its text takes part in every layer
        weight_bytes=weight_bytes,
        num_branches=num_branches,
    )


_WORKLOADS: dict[str, Callable[[Mapping[str, Any], tuple[int, int, int], float, int], Workload]] = {
    "HunyuanVideoTransformer3DModel": _hunyuan,
    "WanTransformer3DModel": _wan,
}
