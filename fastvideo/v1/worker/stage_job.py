"""One phase over one shard, as torchrun starts it: ``python -m fastvideo.v1.worker.stage_job``.

Each rank walks its part of the shard and commits item by item. Events go to standard output, one JSON object a line.
"""

import argparse
import json
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from fastvideo.v1.dataset.failures import record_failure
from fastvideo.v1.dataset.keys import result_settings
from fastvideo.v1.dataset.ledger import LedgerWriter
from fastvideo.v1.dataset.run import Run, open_run
from fastvideo.v1.dataset.shards import read_shard
from fastvideo.v1.dataset.store_errors import StoreMisconfigured
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.failures import Preempted
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import PHASE_JOBS, InputDamaged, InputMissing, JobSettings, PhaseJob, Product
from fastvideo.v1.worker.process import die_with_parent

logger = init_logger(__name__)

# What a sample can do wrong by itself; all else is the machine's or the store's fault and ends the job.
SAMPLE_ERRORS = (ValueError, ArithmeticError)


def emit(event: str, **values: Any) -> None:
    """One event for the process that watches this job."""
    print(json.dumps({"event": event, **values}), flush=True)


class StageJob:
    """Walks one rank's groups: inputs are fetched a group ahead, products committed a group behind."""

    def __init__(self, job: PhaseJob, ledger: LedgerWriter) -> None:
        self.job = job
        self.ledger = ledger
        self.counts: Counter[str] = Counter()

    def run(self, groups: Sequence[Sequence[Any]]) -> None:
        """Makes every item that is missing; raises :class:`Preempted` between items when the job has to leave."""
        with ThreadPoolExecutor(1) as fetcher, ThreadPoolExecutor(1) as committer:
            fetches: list[Future[list[tuple[Any, Any]]]] = [fetcher.submit(self._fetch, group) for group in groups[:1]]
            commits: list[Future[None]] = []
            for position in range(len(groups)):
                pairs = fetches.pop().result()
                fetches += [fetcher.submit(self._fetch, group) for group in groups[position + 1 : position + 2]]
                if self.job.is_stopping():
                    raise Preempted("asked to leave between two items")
                products = self._make(pairs)
                for commit in commits:
                    commit.result()
                commits = [committer.submit(self._commit, item, product) for item, product in products]
            for commit in commits:
                commit.result()

    def _fetch(self, items: Sequence[Any]) -> list[tuple[Any, Any]]:
        """The items that are still missing, with what they are made from."""
        pairs = []
        for item in items:
            if self.job.run.objects.exists(self.job.path(item)):
                self._count("skipped", item.id)
                continue
            try:
                pairs.append((item, self.job.fetch(item)))
            except InputDamaged as damaged:
                self._count("damaged", item.id, reason=str(damaged))
            except InputMissing as missing:
                self._count("skipped", item.id, reason=f"its input is missing: {missing}")
        return pairs

    def _make(self, pairs: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Product]]:
        """The products of one group; items of a group that fails on its own account are then tried one by one."""
        if len(pairs) > 1:
            items, inputs = zip(*pairs, strict=True)
            try:
                return list(zip(items, self.job.make(items, inputs), strict=True))
            except StoreMisconfigured:
                raise
            except SAMPLE_ERRORS as error:
                logger.warning("a group of %d failed, so each is tried alone: %s", len(pairs), error)
        return [made for item, inputs in pairs for made in self._try(item, inputs)]

    def _try(self, item: Any, inputs: Any) -> Iterator[tuple[Any, Product]]:
        """The product of one item, or none once it is out of tries and on record."""
        tries = self.job.settings.tries
        for attempt in range(1, tries + 1):
            try:
                yield item, next(self.job.make([item], [inputs]))
                return
            except StoreMisconfigured:
                raise
            except SAMPLE_ERRORS as error:
                logger.warning("%s failed, attempt %d of %d: %s", item.id, attempt, tries, error)
                self.job.clean_up(item)  # a state saved on the way to a failure leads there again
                if attempt == tries:
                    self._record_failure(item, error)
                else:
                    inputs = self.job.fetch(item)  # anew: a failed call may have left its mark on the first

    def _record_failure(self, item: Any, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        record_failure(self.job.run, self.job.phase, item.id, text, traceback.format_exc(), self.job.settings.tries)
        self._count("failed", item.id, error=text)

    def _commit(self, item: Any, product: Product) -> None:
        row = self.job.commit(product)
        self.job.clean_up(item)
        if row is None:
            self._count("skipped", item.id, reason="another process was first")
            return
        self.ledger.add(row)
        self._count("committed", item.id, seconds=round(product.seconds, 3), bytes=row.bytes)

    def _count(self, event: str, id: str, **values: Any) -> None:
        self.counts[event] += 1
        emit(event, id=id, **values)


def run_stage_job(run: Run, phase: Phase, shard: str, worker: GPUWorker, settings: JobSettings) -> None:
    """Runs ``phase`` over this rank's part of the shard at path ``shard``."""
    started = time.monotonic()
    stopping = _stop_on_sigterm()
    device = worker.init_device()
    job = PHASE_JOBS[phase](run, worker, settings, stopping)
    groups = job.groups(read_shard(run, shard))[worker.rank :: worker.world_size]
    worker.load()
    emit("loaded", phase=phase, device=str(device), seconds=round(time.monotonic() - started, 3))
    with LedgerWriter(run, phase) as ledger:
        stage = StageJob(job, ledger)
        stage.run(groups)
    counts = {name: stage.counts[name] for name in ("committed", "skipped", "failed", "damaged")}
    emit("done", phase=phase, rank=worker.rank, seconds=round(time.monotonic() - started, 3), **counts)


def engine_settings(run: Run, given: Mapping[str, Any]) -> FastVideoArgs:
    """The run's own settings; where it leaves a choice open (an exact attention backend), the job may make it.

    Raises ``ValueError`` for a choice, of ``given`` or of this host's environment, that would shape results otherwise
    than the run's key says.
    """
    decided = {name: value for name, value in run.engine.items() if value is not None}
    engine = FastVideoArgs(**{**given, **decided, "model_path": run.model_path})
    for name, value in result_settings(engine).items():
        if value != (planned := run.engine.get(name)):
            raise ValueError(
                f"{name}={value!r} here, but run {run.name} was planned with {planned!r}, and both cannot share a key; "
                "take it out of the job's settings and environment, or plan with it"
            )
    return engine


def _stop_on_sigterm() -> Any:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    return lambda: bool(asked)


@record
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line that the launcher writes, and runs the job."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="stage_job", description=__doc__)
    parser.add_argument("--output", required=True, help="URI of the data set")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--phase", required=True, type=Phase, choices=list(Phase))
    parser.add_argument("--shard", required=True, help="path of the shard within the output")
    parser.add_argument("--engine", default="{}", type=json.loads, help="JSON of FastVideoArgs that shape no result")
    parser.add_argument("--settings", default="{}", type=json.loads, help="JSON of JobSettings")
    options = parser.parse_args(arguments)
    run = open_run(options.output, options.run)
    worker = GPUWorker(engine_settings(run, options.engine), (options.phase,))
    run_stage_job(run, options.phase, options.shard, worker, JobSettings(**options.settings))


if __name__ == "__main__":
    main()
