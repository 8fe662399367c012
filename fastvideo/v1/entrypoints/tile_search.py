"""`fastvideo search-tiles`: windows of sliding tile attention for a model, found on its own videos.

Each head takes, at each step, the candidate whose output is nearest to dense attention's in mean squared distance
(arXiv 2502.04507, section 3.3); the first steps, which lay a video out, stay dense.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastvideo.v1.attention import AttentionBackend, DistributedAttention
from fastvideo.v1.attention.backends.sliding_tile import sliding_tile_attention
from fastvideo.v1.attention.sliding_tiles import Size3, tile_layout
from fastvideo.v1.entrypoints.video_generator import VideoGenerator
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import get_forward_context
from fastvideo.v1.pipelines.stages import LatentPreparationStage
from fastvideo.v1.worker.executor import UniProcExecutor


@dataclass
class TileSearch:
    """The distances seen so far: by (step, layer) float64 ``[candidates, heads]``, summed over calls."""

    grid: Size3
    candidates: Sequence[Size3]
    distances: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def compare(
        self,
        layer: AttentionBackend,
        dense: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> None:
        """Adds each candidate's distance to ``dense``, the layer's output; all ``[b, s, n, d]``."""
        num_text = query.shape[1] - self.grid[0] * self.grid[1] * self.grid[2]
        layout, heads = tile_layout(self.grid, num_text, query.device), query.shape[2]
        rows = []
        for window in self.candidates:
            out = sliding_tile_attention(query, key, value, layout, (window,) * heads, layer.softmax_scale)
            rows.append((out.float() - dense.float()).square().mean(dim=(0, 1, 3)).double().cpu())
        place = get_forward_context().step_index, layer.layer_index
        self.distances[place] = self.distances.get(place, 0) + torch.stack(rows)

    def strategy(self, dense_steps: int) -> dict[str, Size3]:
        """The best windows in the published form; the first ``dense_steps`` steps get windows of the whole canvas."""
        windows = {}
        whole = tile_layout(self.grid, 0, torch.device("cpu")).num_tiles
        for (step, layer), distances in sorted(self.distances.items()):
            for head, best in enumerate(distances.argmin(dim=0).tolist()):
                windows[f"{step}_{layer}_{head}"] = whole if step < dense_steps else self.candidates[best]
        return windows


class _ComparingBackend(AttentionBackend):
    """Dense attention, by the backend it stands in for, that lets a search watch."""

    def __init__(self, dense: AttentionBackend, search: TileSearch) -> None:
        super().__init__(dense.num_heads, dense.head_size, dense.softmax_scale, dense.causal, dense.layer_index)
        self._dense, self._search = dense, search

    @classmethod
    def obstacle(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        return None

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = self._dense.forward(query, key, value)
        self._search.compare(self, out, query, key, value)
        return out


def search_tiles(
    model: str, prompts: Sequence[str], candidates: Sequence[Size3], dense_steps: int, **sampling: Any
) -> dict[str, Size3]:
    """Makes one video a prompt with dense attention, and returns the strategy that comes nearest to it.

    ``candidates`` are windows in tiles along t, h, w; ``sampling`` are fields of ``SamplingParams``. The result is for
    this model, canvas and number of steps.
    """
    executor = UniProcExecutor(FastVideoArgs(model_path=model))
    generator, pipeline = VideoGenerator(executor), executor.worker.pipeline
    request = pipeline.sampling_defaults().with_overrides(**sampling)
    transformers = [pipeline.modules[name] for name in ("transformer", "transformer_2") if name in pipeline.modules]
    (preparation,) = (entry.stage for entry in pipeline.stages if isinstance(entry.stage, LatentPreparationStage))
    latents = torch.empty(1, *preparation.latent_shape(request), device="meta")
    search = TileSearch(transformers[0].token_grid(latents), tuple(candidates))
    for layer in (layer for transformer in transformers for layer in transformer.modules()):
        if isinstance(layer, DistributedAttention):
            assert layer.backend is not None, "backends are chosen when weights are loaded"
            layer.backend = _ComparingBackend(layer.backend, search)
    for number, prompt in enumerate(prompts):
        generator.generate_video(prompt, **{**sampling, "seed": request.seed + number})
    return search.strategy(dense_steps)
