"""`fastvideo bench overhead`: the share of a run that is no GPU work, by arithmetic on measured parts.

A shard costs loading and compilation from the start of its process (of one GPU, so that no torchrun starts before it),
what orchestrates it, and the upload of its last sample, which no other hides; a sample costs the gaps around it. All of
that is held against the GPU's work at the same shard size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvideo.v1.dataset.waves.shards import TARGET_SECONDS
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

STEPS = 50
TEXTS = 4096  # of an encode shard, by default
UPLOAD_SECONDS = 1.0  # assumed, for some megabytes of latents or video
# Figures of one forward, forwards a step (two with guidance), figures of the cold start, figures of decoding. The cold
# start of HunyuanVideo was not measured: the 14B has more to load. One of encoding or decoding counts the same.
SYSTEMS = {
    "Wan2.1 1.3B, 480x832x81": ("dit_wan21_1.3B", 2, "pipeline_1.3B", "vae_wan"),
    "Wan2.1 14B, 480x832x81": ("dit_wan21_14B", 2, "pipeline_14B_cold", "vae_wan"),
    "HunyuanVideo, 544x960x129": ("dit_hunyuan_13B", 1, "pipeline_14B_cold", "vae_hunyuan"),
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds: of GPU work a sample in each phase, of each shard beside it, and of each sample beside it."""

    work: Mapping[Phase, float]
    a_shard: float
    a_sample: float
    texts: int = TEXTS

    def shard_sizes(self, seconds: float) -> dict[Phase, int]:
        """Samples of a shard of so many seconds of work, at least one; an encode shard stays as it is."""
        sizes = {phase: max(1, int(seconds / self.work[phase])) for phase in (Phase.DENOISE, Phase.DECODE)}
        return {Phase.ENCODE: self.texts, **sizes}

    def overhead(self, sizes: Mapping[Phase, int]) -> float:
        """The share of the time that is no GPU work, over all three phases."""
        beside = self.a_sample + sum(self.a_shard / sizes[phase] for phase in ALL_PHASES)
        return beside / (beside + sum(self.work.values()))

    def shard_seconds_at(self, share: float) -> float:
        """Seconds of work of the denoise and decode shards at which the overhead is ``share``, whole samples or not."""
        work = sum(self.work.values())
        beside = work * share / (1 - share) - self.a_sample - self.a_shard / self.texts
        return self.a_shard * (self.work[Phase.DENOISE] + self.work[Phase.DECODE]) / beside


def bench_overhead(folder: str, orchestration_seconds: float | None) -> dict[str, Any]:
    """Overheads of each system at the default shards, and the shards at which it would be 5%.

    ``folder`` holds the JSON files of the other benches; seconds of orchestration a shard are those of
    ``dataset_sqlite.json`` unless given.
    """
    figures = Path(folder)
    if orchestration_seconds is None:
        orchestration_seconds = _value(figures / "dataset_sqlite.json", "orchestration_ms_a_shard") / 1e3
    rows = []
    for system, (transformer, branches, cold, vae) in SYSTEMS.items():
        parts = _parts(figures, transformer, branches, cold, vae, orchestration_seconds)
        sizes, seconds = parts.shard_sizes(TARGET_SECONDS), parts.shard_seconds_at(0.05)
        rows.append(
            {
                "system": system,
                "denoise_seconds": parts.work[Phase.DENOISE],
                "decode_seconds": parts.work[Phase.DECODE],
                "shard_samples": sizes[Phase.DENOISE],
                "shard_overhead_seconds": parts.a_shard,
                "overhead": parts.overhead(sizes),
                "without_orchestration": replace(parts, a_shard=parts.a_shard - orchestration_seconds).overhead(sizes),
                "minutes_at_5_percent": seconds / 60,
                "samples_at_5_percent": seconds / parts.work[Phase.DENOISE],
            }
        )
    return {"modelled": "H100", "steps": STEPS, "orchestration_seconds_a_shard": orchestration_seconds, "rows": rows}


def _parts(folder: Path, transformer: str, branches: int, cold: str, vae: str, orchestration_seconds: float) -> Parts:
    forward = _row(folder / f"{transformer}_h100.json", "case", "ours")["ms"] / 1e3
    decode = _row(folder / f"{vae}_h100.json", "case", "ours+bfloat16")["seconds"]
    encode = 1 / max(row["prompts_per_second"] for row in _rows(folder / "encode_umt5_h100.json"))
    start = _value(folder / f"{cold}_h100.json", "first_step_seconds")
    gaps = folder / "pipeline_1.3B_h100.json"
    forwards = STEPS * branches
    between = _value(gaps, "gap_between_samples_ms") + forwards * _value(gaps, "gap_in_sample_ms")
    return Parts(
        work={Phase.ENCODE: encode, Phase.DENOISE: forwards * forward, Phase.DECODE: decode},
        a_shard=start - branches * forward + UPLOAD_SECONDS + orchestration_seconds,
        a_sample=between / 1e3,
    )


def _rows(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        return list(json.loads(path.read_text())["rows"])
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; name the folder with the benches' JSON files by --figures") from None


def _row(path: Path, column: str, value: str) -> Mapping[str, Any]:
    (row,) = (row for row in _rows(path) if row[column] == value)
    return row


def _value(path: Path, figure: str) -> float:
    return float(_row(path, "figure", figure)["value"])
