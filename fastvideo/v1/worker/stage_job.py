"""One phase over one shard, as each rank of a job runs it: ``python -m fastvideo.v1.worker.stage_job``.

Each model group walks its part of the shard and commits item by item. Events go to standard output, one JSON object a
line.
"""

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from threading import Lock
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from fastvideo.v1.dataset.progress.failures import record_failure
from fastvideo.v1.dataset.progress.ledger import LedgerWriter
from fastvideo.v1.dataset.runs.fingerprint import check_weights
from fastvideo.v1.dataset.runs.keys import result_settings
from fastvideo.v1.dataset.runs.run import Run, open_run
from fastvideo.v1.dataset.waves.shards import read_shard
from fastvideo.v1.distributed.communication import all_reduce, broadcast_object, gather_objects
from fastvideo.v1.distributed.parallel_state import get_control_group, get_data_group, waiting_at_most
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.commits import Commits
from fastvideo.v1.worker.failures import EXIT_PREEMPTED, Preempted, RanksOutOfStep
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import PHASE_JOBS, InputDamaged, InputMissing, JobSettings, PhaseJob, Product
from fastvideo.v1.worker.process import die_with_parent
from fastvideo.v1.worker.sample_failures import SAMPLE_ERRORS, SampleFailure, is_of_the_machine
from fastvideo.v1.worker.shard_history import put_off

logger = init_logger(__name__)


def emit(event: str, **values: Any) -> None:
    """One event for the process that watches this job; in one write, for threads tell of theirs side by side."""
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


Pair = tuple[Any, Any]
"""An item and what it is made from."""


class StageJob:
    """Walks one rank's groups: inputs are fetched a group ahead, products committed a group behind.

    The ranks of a model group walk in step. Its first rank alone reads and writes the stores and tells of samples; what
    it found and fetched goes to the others from the main thread, over a transport that no model uses. What happened to
    a sample on any rank happened on all.
    """

    def __init__(self, job: PhaseJob, ledger: LedgerWriter) -> None:
        self.job = job
        self.ledger = ledger
        self.counts: Counter[str] = Counter()
        self._counting = Lock()  # both threads and the main one do
        self._group = get_control_group()
        self._has_made = False  # anything

    def run(self, groups: Sequence[Sequence[Any]]) -> None:
        """Makes every item that is missing; raises :class:`Preempted` between items when the job has to leave."""
        with ThreadPoolExecutor(1) as fetcher, ThreadPoolExecutor(1) as committer:
            fetches: list[Future[list[Pair]]] = [fetcher.submit(self._fetch, group) for group in groups[:1]]
            commits = Commits(committer, self._commit)
            for position in range(len(groups)):
                pairs = broadcast_object(fetches.pop().result(), self._group)
                fetches += [fetcher.submit(self._fetch, group) for group in groups[position + 1 : position + 2]]
                if pairs:  # what is passed over in no time says nothing of how long a step takes
                    self.job.heartbeat.beat()
                if self.job.is_stopping():
                    raise Preempted("asked to leave between two items")
                commits.hand_over(self._make(pairs))
            commits.finish()

    def _fetch(self, items: Sequence[Any]) -> list[Pair]:
        """The items that are still missing, with what they are made from; none but on the group's first rank."""
        pairs = []
        for item in items if self.job.leads else ():
            if self.job.run.objects.exists(self.job.path(item)):
                self._count("skipped", item.id)
                continue
            if (lost := self.job.settings.suspects.get(item.id, 0)) >= self.job.settings.tries:
                self._count("failed", item.id, error=f"jobs that ended at it: {lost}")
                continue
            try:
                pairs.append((item, self.job.fetch(item)))
            except InputDamaged as damaged:
                self._count("damaged", item.id, reason=str(damaged))
            except InputMissing as missing:
                self._count("skipped", item.id, reason=f"its input is missing: {missing}")
        return pairs

    def _make(self, pairs: Sequence[Pair]) -> list[tuple[Any, Product]]:
        """The products of one group; items of a group that fails on its own account are then tried one by one."""
        if len(pairs) > 1:
            made = self._attempt(pairs)
            if not isinstance(made, SampleFailure):
                return made
            logger.warning("a group of %d failed, so each is tried alone: %s", len(pairs), made.error)
        return [product for pair in pairs for product in self._try(pair)]

    def _try(self, pair: Pair) -> list[tuple[Any, Product]]:
        """The product of one item, or none once it is out of tries and on record."""
        item, _ = pair
        tries = self.job.settings.tries
        pairs = [pair]
        for attempt in range(1, tries + 1):
            made = self._attempt(pairs)
            if not isinstance(made, SampleFailure):
                return made
            logger.warning("%s failed, attempt %d of %d: %s", item.id, attempt, tries, made.error)
            self.job.clean_up(item)  # a state saved on the way to a failure leads there again
            if attempt == tries:
                self._record_failure(item, made)
            else:  # anew: a failed call may have left its mark on the first
                pairs = broadcast_object(self._fetch([item]), self._group)
                if not pairs:  # by now another process has made it, or its input is gone
                    return []
        return []

    def _attempt(self, pairs: Sequence[Pair]) -> list[tuple[Any, Product]] | SampleFailure:
        """The products of one call, or why it failed on the items' own account, be it on another rank.

        What else an item can do ends the job, which says of it that it did.
        """
        items, inputs = [item for item, _ in pairs], [inputs for _, inputs in pairs]
        if self.job.leads:
            emit("began", rank=self.job.worker.rank, ids=[item.id for item in items])
        made: list[tuple[Any, Product]] = []
        failure = None
        try:
            made = list(zip(items, self.job.make(items, inputs), strict=True))
        except Exception as error:
            if is_of_the_machine(error):
                raise
            failure = SampleFailure.of(error)
            if not self._can_go_on(error, items):
                if self._gather_soon(failure):  # else a rank is gone, which is no sample's fault
                    self._blame(items, failure)
                raise
        if failure is not None:
            torch.cuda.empty_cache()  # what the call held is free only now
        failures = [failure for failure in self._agree(items, failure) if failure is not None]
        self._has_made |= not failures
        return failures[0] if failures else made

    def _can_go_on(self, error: Exception, items: Sequence[Any]) -> bool:
        """Whether other items can be made by this process, and are not likely to fail in the same way.

        Out of memory is an item's own account where it asks for a size of its own, or others were made before.
        """
        if isinstance(error, torch.OutOfMemoryError):
            return len(items) > 1 or self._has_made or self.job.has_own_size(items[0])
        return isinstance(error, SAMPLE_ERRORS)

    def _agree(self, items: Sequence[Any], failure: SampleFailure | None) -> list[SampleFailure | None]:
        """What became of a call on each rank; raises :class:`RanksOutOfStep` if it failed on this one alone in the
        middle, where the others wait for it.
        """
        if failure is None:
            return gather_objects(failure, self._group)
        if failures := self._gather_soon(failure):
            return failures
        self._blame(items, failure)
        raise RanksOutOfStep(
            f"{failure.error} (on rank {self.job.worker.rank}; others of the sample were not through with it "
            f"{self.job.settings.failure_seconds:g} s later)\n{failure.traceback}"
        )

    def _gather_soon(self, failure: SampleFailure) -> list[SampleFailure | None]:
        """What became of a call on each rank; nothing if some do not come to say so in ``failure_seconds``."""
        try:
            with waiting_at_most(timedelta(seconds=self.job.settings.failure_seconds)):
                return gather_objects(failure, self._group)
        except RuntimeError:
            return []

    def _blame(self, items: Sequence[Any], failure: SampleFailure) -> None:
        """Tells that an item ends this job; one that does so for the last of its tries is on record.

        Of several nobody knows which it is: the next job takes each alone.
        """
        if len(items) > 1:
            return
        (item,) = items
        lost = self.job.settings.suspects.get(item.id, 0) + 1
        if lost >= self.job.settings.tries:
            error = f"{failure.error} (jobs that ended at it: {lost})"
            record_failure(self.job.run, self.job.phase, item.id, error, failure.traceback, lost)
        emit("blamed", id=item.id, error=failure.error)

    def _record_failure(self, item: Any, failure: SampleFailure) -> None:
        if not self.job.leads:
            return
        tries = self.job.settings.tries
        record_failure(self.job.run, self.job.phase, item.id, failure.error, failure.traceback, tries)
        self._count("failed", item.id, error=failure.error)

    def _commit(self, item: Any, product: Product) -> None:
        if not self.job.leads:
            return
        try:
            row = self.job.commit(product)
        except Exception as error:
            if is_of_the_machine(error):
                raise
            failure = SampleFailure.of(error)
            self._blame([item], failure)
            raise RuntimeError(failure.error) from error  # whatever its kind: the sample alone is a bad input
        self.job.clean_up(item)
        if row is None:
            self._count("skipped", item.id, reason="another process was first")
            return
        self.ledger.add(row)
        self._count("committed", item.id, seconds=round(row.seconds or 0.0, 3), bytes=row.bytes)

    def _count(self, event: str, id: str, **values: Any) -> None:
        with self._counting:
            self.counts[event] += 1
        emit(event, id=id, **values)


def run_stage_job(run: Run, phase: Phase, shard: str, worker: GPUWorker, settings: JobSettings) -> None:
    """Runs ``phase`` over this rank's part of the shard at path ``shard``: samples go to model groups in turn."""
    started = time.monotonic()
    asked = _asked_to_stop()
    device = worker.init_device(timedelta(seconds=settings.rank_timeout))
    job = PHASE_JOBS[phase](run, worker, settings, lambda: _any_rank(asked()))
    data = get_data_group()
    groups = put_off(job.groups(read_shard(run, shard)), settings.suspects)[data.rank :: data.size]
    worker.load()
    pipeline = worker.pipeline
    check_weights(run, pipeline.repository.root, pipeline.components(phase))
    emit("loaded", phase=phase, device=str(device), seconds=round(time.monotonic() - started, 3))
    with job.heartbeat, LedgerWriter(run, phase) as ledger:
        stage = StageJob(job, ledger)
        stage.run(groups)
    worker.shutdown()
    counts = {name: stage.counts[name] for name in ("committed", "skipped", "failed", "damaged")}
    emit("done", phase=phase, rank=worker.rank, seconds=round(time.monotonic() - started, 3), **counts)


def engine_settings(run: Run, given: Mapping[str, Any]) -> FastVideoArgs:
    """The run's own settings; where it leaves a choice open (an exact attention backend), the job may make it.

    ``given`` says where its model lies for this host; else it is where it was planned with. Raises ``ValueError`` for a
    choice, of ``given`` or of this host's environment, that would shape results otherwise than the run's key says.
    """
    decided = {name: value for name, value in run.engine.items() if value is not None}
    engine = FastVideoArgs(**{"model_path": run.model_path, **given, **decided})
    for name, value in result_settings(engine).items():
        if value != (planned := run.engine.get(name)):
            raise ValueError(
                f"{name}={value!r} here, but run {run.name} was planned with {planned!r}, and both cannot share a key; "
                "take it out of the job's settings and environment, or plan with it"
            )
    return engine


def _asked_to_stop() -> Callable[[], bool]:
    """Whether this process has been sent SIGTERM since now."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    return lambda: bool(asked)


def _any_rank(flag: bool) -> bool:
    """Whether it holds on some rank of the model group, which all of them ask at the same point."""
    return bool(all_reduce(torch.tensor(int(flag), device="cpu"), get_control_group()))


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
    try:
        main()
    except Preempted as left:
        print(f"preempted: {left}", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
