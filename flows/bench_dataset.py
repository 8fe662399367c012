"""`fastvideo bench dataset`: what orchestration costs, by a run whose jobs only commit.

Flows, tasks, Prefect server, database, store and ledger are the real ones; the launch of jobs is left out. A run is a
process of its own, killed with -9 at half of its shards if wanted, and then resumed by another.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import psutil

from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.entrypoints.bench.dataset import Meter, by_tenths, prepare
from flows.local_server import prefect_server, quiet_prefect

_FIGURES = "figures.json"


def bench_dataset(
    num_samples: int, num_shards: int, is_killed: bool, database: str | None, folder: str | None
) -> dict[str, Any]:
    """Seconds, memory and requests of a run of ``num_samples`` in ``num_shards`` denoise shards and those they need.

    ``database`` is Prefect's, an SQLAlchemy URL, by default SQLite in ``folder``, where all is written for the time.
    """
    quiet_prefect(debug=False)
    with TemporaryDirectory(prefix="fastvideo-bench-", dir=folder) as scratch:
        config = prepare(Path(scratch), num_samples, num_shards)
        url = database or f"sqlite+aiosqlite:///{scratch}/prefect.db"
        os.environ.pop("PREFECT_API_URL", None)
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = url
        with prefect_server():
            server = _server()
            stops = [num_shards // 2, None] if is_killed else [None]
            lives = [_live(Path(scratch), config, stop_after) for stop_after in stops]
            used = server.cpu_times()
            about_server = {"cpu_seconds": used.user + used.system, "peak_mib": _peak(server)}
            about_server["database_mib"] = _database_bytes(url) / 2**20
    return {
        "samples": num_samples,
        "database": url.partition(":")[0],
        "tenths": by_tenths(lives),
        "rows": [{"figure": name, "value": value} for name, value in _summary(lives, about_server).items()],
    }


def _server() -> psutil.Process:
    (server,) = (one for one in psutil.Process().children() if "flows.local_server" in one.cmdline())
    return server


def _peak(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak) / 1024


def _database_bytes(url: str) -> int:
    if url.startswith("sqlite"):
        path = url.partition(":///")[2]
        return sum(Path(path + end).stat().st_size for end in ("", "-wal") if Path(path + end).exists())
    return asyncio.run(_ask_for_bytes(url))


async def _ask_for_bytes(url: str) -> int:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url)
    async with engine.connect() as connection:
        size = (await connection.execute(text("SELECT pg_database_size(current_database())"))).scalar_one()
    await engine.dispose()
    return int(size)


def _live(scratch: Path, config: RunConfig, stop_after: int | None) -> dict[str, Any]:
    """One life of the run in a process of its own; its figures."""
    told = scratch / _FIGURES
    told.unlink(missing_ok=True)
    values = {name: value for name, value in asdict(config).items() if isinstance(value, str | int)}
    command = [sys.executable, "-m", "flows.bench_dataset", str(scratch), json.dumps(values), json.dumps(stop_after)]
    life = subprocess.run(command, stdout=subprocess.DEVNULL)
    if life.returncode != (0 if stop_after is None else -signal.SIGKILL):
        raise RuntimeError(f"the run ended with code {life.returncode}")
    return dict(json.loads(told.read_text()))


def _summary(lives: Sequence[Mapping[str, Any]], server: Mapping[str, float]) -> dict[str, float]:
    shards = sum(len(life["ends"]) for life in lives)
    wall = sum(life["ended"] - life["started"] for life in lives)
    committing = sum(life["commit_seconds"] for life in lives)
    tasks: dict[str, list[float]] = {}
    for life in lives:
        for name, seconds in life["tasks"].items():
            tasks.setdefault(name, []).extend(seconds)
    requests = [life["requests"] for life in lives]
    figures: dict[str, float] = {
        "shards": shards,
        "objects": sum(life["objects"] for life in lives),
        "waves": len(tasks["close_wave"]),
        "wall_seconds": wall,
        "commit_seconds": committing,
        "orchestration_ms_a_shard": 1e3 * (wall - committing) / shards,
        "client_cpu_ms_a_shard": 1e3 * sum(life["cpu_seconds"] for life in lives) / shards,
        "server_cpu_ms_a_shard": 1e3 * server["cpu_seconds"] / shards,
        "client_peak_mib": max(life["peak_mib"] for life in lives),
        "server_peak_mib": server["peak_mib"],
        "database_mib": server["database_mib"],
        "first_shard_seconds": lives[0]["first_shard_at"] - lives[0]["started"],
    }
    if len(lives) > 1:
        figures["resumed_first_shard_seconds"] = lives[-1]["first_shard_at"] - lives[-1]["started"]
    for name, seconds in tasks.items():
        figures |= {f"{name}_calls": len(seconds), f"{name}_seconds": sum(seconds), f"{name}_longest": max(seconds)}
    for name in sorted({name for counts in requests for name in counts}):
        figures[f"store_{name}_requests"] = sum(counts.get(name, 0) for counts in requests)
    return figures


def _main(scratch: str, values: str, stop_after: str) -> None:
    """The run itself; what it spent goes into a file, also right before it kills itself."""
    from flows.generate_dataset import generate_dataset

    meter = Meter(Path(scratch), json.loads(stop_after), lambda: end())

    def tell() -> None:
        figures = meter.figures(psutil.Process().create_time())
        (Path(scratch) / _FIGURES).write_text(json.dumps(figures))

    def end() -> None:
        tell()
        os.kill(os.getpid(), signal.SIGKILL)

    with ExitStack() as stack:
        stack.enter_context(patch("tasks.stage.launch", meter.launch))
        stack.enter_context(meter.counting())
        for name, task in _storage_tasks().items():
            stack.enter_context(patch.object(task, "fn", meter.timed(name, task.fn)))
        generate_dataset(parse_config(json.loads(values)))
    tell()


def _storage_tasks() -> dict[str, Any]:
    """All tasks but those that run shards, by name."""
    from prefect import Task

    from tasks import plan, publish

    return {name: one for module in (plan, publish) for name, one in vars(module).items() if isinstance(one, Task)}


if __name__ == "__main__":
    _main(*sys.argv[1:])
