"""Whether what lies in the stores is what was made: every object read, every gap and every orphan named."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from fastvideo.v1.dataset.keeping.needs import ObjectFolder, needed_ids, published_objects, run_folders
from fastvideo.v1.dataset.keeping.object_check import Checked, Finding, FolderCheck, Kind
from fastvideo.v1.dataset.layout import DATA
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.runs.run import Run, list_runs, open_run
from fastvideo.v1.pipelines.phase import ALL_PHASES

KEPT_FINDINGS = 200  # of each kind
Progress = Callable[[int, int], None]
"""Takes the objects and the bytes dealt with so far."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """``num_objects`` of ``num_bytes`` were read; ``findings`` are the first of each kind that ``counts`` counts.

    ``num_put_aside`` of the damaged ones are out of the way, so that the next run makes them again.
    """

    num_objects: int
    num_bytes: int
    num_put_aside: int
    counts: Mapping[Kind, int]
    findings: tuple[Finding, ...]

    @property
    def is_damaged(self) -> bool:
        """Whether something lies there that is not what was made."""
        return self.counts.get(Kind.DAMAGED, 0) > self.num_put_aside

    @property
    def has_gaps(self) -> bool:
        """Whether something that was made, or published, is not there."""
        gaps = self.num_put_aside, *(self.counts.get(kind, 0) for kind in (Kind.LOST, Kind.BROKEN))
        return any(gaps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def runs_to_verify(output: Store, name: str | None, *, all_runs: bool) -> tuple[list[Run], list[Run]]:
    """The runs of ``output`` that are asked for, by default the newest, and all that there are.

    None of none where only the published table is left. Raises ``ValueError`` as :func:`open_run` does.
    """
    every = list_runs(output)
    if not every and name is None and output.list(DATA):
        return [], []
    asked = open_run(output, name)
    return every if all_runs else [asked], every


def verify(
    output: Store,
    runs: Sequence[Run],
    all_runs: Sequence[Run],
    *,
    repair: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Reads every object of ``runs``, and holds it against its own digest, the ledger and the published table.

    Videos are decoded, and held against the size and length that their samples ask for. What none of ``all_runs`` of
    the output needs is an orphan; not so in a store apart from the output, which others may share. With ``repair``
    damaged objects are put aside. Holds a few objects, and some hundred bytes a sample, in memory.
    """
    published = published_objects(output)  # before any listing: what it names is there by then
    needed = needed_ids(all_runs)
    tally = _Tally(progress)
    for folder in dict.fromkeys(folder for run in runs for folder in run_folders(run)):
        sharing = [run for run in all_runs if folder in run_folders(run)]
        tally.take(FolderCheck(folder, sharing, needed[folder], published.get(folder), repair=repair).run())
    if len(runs) == len(all_runs):
        for folder in published.keys() - needed.keys():  # of runs that are gone
            nobody = pa.array([], pa.string())
            tally.take(FolderCheck(folder, [], nobody, published[folder], repair=repair).run())
        tally.take(_orphaned_folders(output, {*needed, *published}))
    return tally.result()


def _orphaned_folders(output: Store, needed: set[ObjectFolder]) -> Iterator[Checked]:
    """The keys in the output's own store that nobody has."""
    for phase in ALL_PHASES:
        for key in output.folders(phase):
            folder = ObjectFolder(output.uri(""), phase, key)
            if folder not in needed:
                infos = output.list(folder.path)
                said = f"no run has this key ({len(infos)} files of {sum(info.size for info in infos)} bytes)"
                yield Checked(findings=(Finding(Kind.ORPHAN, folder.path, said),))


class _Tally:
    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._objects = self._bytes = self._put_aside = 0
        self._counts: Counter[Kind] = Counter()
        self._findings: list[Finding] = []

    def take(self, results: Iterator[Checked]) -> None:
        for checked in results:
            self._objects += checked.size is not None
            self._bytes += checked.size or 0
            self._put_aside += checked.put_aside
            for finding in checked.findings:
                self._counts[finding.kind] += 1
                if self._counts[finding.kind] <= KEPT_FINDINGS:
                    self._findings.append(finding)
            if self._progress is not None:
                self._progress(self._objects, self._bytes)

    def result(self) -> Verification:
        order = list(Kind)
        return Verification(
            num_objects=self._objects,
            num_bytes=self._bytes,
            num_put_aside=self._put_aside,
            counts={kind: self._counts[kind] for kind in order if self._counts[kind]},
            findings=tuple(sorted(self._findings, key=lambda found: (order.index(found.kind), found.path))),
        )
