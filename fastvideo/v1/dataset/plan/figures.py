"""What an object costs by benchmarks on one H100, for runs that have no ledger yet; what is assumed says so."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastvideo.v1.dataset.runs.phase_layouts import denoise_workload, transformer_config
from fastvideo.v1.distributed.choice import LayoutChoice
from fastvideo.v1.distributed.cluster import Cluster
from fastvideo.v1.distributed.cost import Workload, step_cost
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.models.loader.repository import INDEX, ModelRepository
from fastvideo.v1.pipelines.describe import PipelineDescription
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.sampling_params import SamplingParams

Mean = Callable[[Callable[[SamplingParams], float]], float]
"""The mean of a function over what the samples ask for."""


@dataclass(frozen=True)
class Figure:
    """``seconds`` that one GPU took for ``amount``: texts, or pixels of all frames.

    It holds for models whose config has the ``width`` that was measured: a key and its value.
    """

    width: tuple[str, Any]
    seconds: float
    amount: float
    source: str


TEXT_ENCODERS = {
    "UMT5EncoderModel": Figure(("d_model", 4096), 2.0723, 944, "encode_umt5_h100.json, 256 texts together")
}
TOKENS_A_TEXT = 36_703 / 944  # of those texts; an object holds no padding
VAES = {
    ("AutoencoderKLWan", "float32"): Figure(("base_dim", 96), 1.2018, 81 * 480 * 832, "vae_wan_h100.json, float32"),
    ("AutoencoderKLWan", "bfloat16"): Figure(("base_dim", 96), 0.7856, 81 * 480 * 832, "vae_wan_h100.json, bfloat16"),
    ("AutoencoderKLHunyuanVideo", "bfloat16"): Figure(
        ("block_out_channels", [128, 256, 512, 512]), 5.6361, 129 * 544 * 960, "vae_hunyuan_h100.json, bfloat16"
    ),
}
_VIDEO_BITS_A_PIXEL, _VIDEO_CRF = 0.2, 18  # assumed
CRF_HALVES = 6.0  # a CRF so much higher halves a file


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure for one object, None where nothing tells it, and where it is from."""

    value: float | None
    source: str


UNKNOWN = Estimate(value=None, source="no figure yet; the first shards will tell")


def pixels(sampling: SamplingParams) -> float:
    """Of all frames of a video."""
    return float(sampling.height * sampling.width * sampling.num_frames)


def benchmark_seconds(
    description: PipelineDescription,
    sampling: SamplingParams,
    choices: Mapping[Phase, LayoutChoice],
    vae_precision: str,
) -> dict[Phase, float]:
    """What a job takes for an object that asks for nothing of its own, of the phases that benchmarks tell of.

    As if the GPUs that share an object lost nothing by it.
    """
    figures = ModelFigures(description, lambda work: work(sampling))
    found = {phase: figures.seconds(phase, ParallelLayout(), vae_precision).value for phase in choices}
    return {phase: seconds / choices[phase].layout.model_size for phase, seconds in found.items() if seconds}


class ModelFigures:
    """What objects of one model cost, in GPU-seconds and bytes; ``mean`` is over the samples of a plan."""

    def __init__(self, description: PipelineDescription, mean: Mean) -> None:
        self._repository = ModelRepository(description.model_root)
        self._canvas, self._transformer = description.canvas, transformer_config(description)
        self._mean = mean

    def workload(self, sampling: SamplingParams) -> Workload | None:
        """A step of the transformer; None for an architecture that is not ours."""
        return denoise_workload(self._transformer, self._canvas, sampling)

    def seconds(self, phase: Phase, layout: ParallelLayout, vae_precision: str) -> Estimate:
        """Of all GPUs of ``layout`` that share an object; the benchmarked encoders and VAEs ran on one."""
        match phase:
            case Phase.ENCODE:
                figure = TEXT_ENCODERS.get(self._class_of("text_encoder"))
                return self._by_figure("text_encoder", figure, 1.0)
            case Phase.DENOISE:
                return self._denoise(layout)
            case Phase.DECODE:
                return self._decode(vae_precision.replace("auto", "float32"))

    def bytes(self, phase: Phase, crf: int) -> Estimate:
        """Size of an object."""
        match phase:
            case Phase.ENCODE:
                return self._text_bytes()
            case Phase.DENOISE:
                mean = self._mean(lambda sampling: 4.0 * work.output_values if (work := self.workload(sampling)) else 0)
                return Estimate(value=mean, source="latents in float32") if mean else UNKNOWN
            case Phase.DECODE:
                bits = _VIDEO_BITS_A_PIXEL * 2 ** ((_VIDEO_CRF - crf) / CRF_HALVES)
                said = f"assumed: {bits:.2g} bits a pixel at CRF {crf}"
                return Estimate(value=self._mean(pixels) * bits / 8, source=said)

    def _denoise(self, layout: ParallelLayout) -> Estimate:
        cluster = Cluster()

        def seconds(sampling: SamplingParams) -> float:
            work = self.workload(sampling)
            steps = sampling.num_inference_steps
            return step_cost(work, layout, cluster).seconds * steps * layout.model_size if work else 0.0

        value = self._mean(seconds)
        said = f"arithmetic of exact forwards at the {cluster.gpu.flops / 1e12:.0f} TFLOP/s that one H100 sustains"
        return Estimate(value=value, source=said) if value else UNKNOWN

    def _decode(self, precision: str) -> Estimate:
        name = self._class_of("vae")
        kinds = sorted((kind for kind in VAES if kind[0] == name), key=lambda kind: kind[1] != precision)
        return self._by_figure("vae", VAES[kinds[0]] if kinds else None, self._mean(pixels))

    def _by_figure(self, component: str, figure: Figure | None, amount: float) -> Estimate:
        if figure is None:
            return UNKNOWN
        key, measured = figure.width
        config = self._repository.read_json(f"{component}/config.json")
        if config.get(key) != measured or config.get("is_residual"):  # Wan2.2's VAE has the class of Wan2.1's
            return UNKNOWN
        return Estimate(value=figure.seconds / figure.amount * amount, source=f"one H100 ({figure.source})")

    def _text_bytes(self) -> Estimate:
        if self._class_of("text_encoder") not in TEXT_ENCODERS:
            return UNKNOWN
        width = self._repository.read_json("text_encoder/config.json")["d_model"]
        said = f"{TOKENS_A_TEXT:.0f} tokens of {width} values in bfloat16, as the benchmark's texts have"
        return Estimate(value=2 * width * TOKENS_A_TEXT, source=said)

    def _class_of(self, component: str) -> str:
        entry = self._repository.read_json(INDEX).get(component) or [None, None]
        return entry[1] or ""
