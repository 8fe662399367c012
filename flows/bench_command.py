"""The kind of ``fastvideo bench`` that needs Prefect."""

import argparse
from typing import Any

from fastvideo.v1.entrypoints.bench.commands import add_kind


def add_bench_dataset(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``bench dataset``."""
    kind = add_kind(kinds, "dataset", "a run whose jobs only commit: what orchestration costs", _dataset)
    kind.add_argument("--samples", type=int, default=10_000)
    kind.add_argument("--shards", type=int, default=100, help="denoise shards; a quarter as many decode shards follow")
    kind.add_argument("--kill", action="store_true", help="kill the run at half of them, and resume it")
    kind.add_argument("--database", metavar="URL", help="Prefect's: postgresql+asyncpg://…; SQLite by default")
    kind.add_argument("--folder", help="where the run is written for the time; else the system's own")


def _dataset(options: argparse.Namespace) -> dict[str, Any]:
    from flows.bench_dataset import bench_dataset

    return bench_dataset(options.samples, options.shards, options.kill, options.database, options.folder)
