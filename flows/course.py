"""How the waves of a run have gone so far, and whether another is worth it."""

from collections.abc import Mapping
from typing import Any

_MOST_LOST = 3  # waves in a row that changed nothing because their flow runs did not end well


class Course:
    """Takes the end of each wave; ``start`` holds the run's counts before the first."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.goes_on = True
        self.is_counted = True  # whether the counts are those after the last wave
        self._counts = {name: start[name] for name in ("phases", "exit_code")}
        self._failed_shards: list[dict[str, str]] = []
        self._is_over_budget = False
        self._lost = 0

    def count(self, status: Mapping[str, Any]) -> None:
        """Notes the run's counts by a scan."""
        self._counts = {name: status[name] for name in self._counts}
        self.is_counted = True

    def take(self, closed: Mapping[str, Any], lost: str | None) -> None:
        """Notes a wave: the reports of its runners, and whether its flow run was lost.

        Where these tell of nothing new, the run's counts are there. No other wave follows one that ran to its end and
        changed nothing, nor one over its error budget. Where waves end together, the counts after the first hold what
        all of them made: the others' own word is taken, too.
        """
        made = sum(phase["committed"] for report in closed["reports"] for phase in report["phases"].values())
        has_changed = made > 0 or "phases" not in closed or closed["phases"] != self._counts["phases"]
        self.is_counted = False
        if "phases" in closed:
            self.count(closed)
        self._failed_shards = [shard for report in closed["reports"] for shard in report["failed"]]
        self._is_over_budget |= any(report["is_over_budget"] for report in closed["reports"])
        self._lost = self._lost + 1 if lost and not has_changed else 0
        is_futile = not has_changed and (not lost or self._lost >= _MOST_LOST)
        self.goes_on = self.goes_on and not is_futile and not self._is_over_budget

    def summary(self) -> dict[str, Any]:
        """The counts by the last scan, the shards that failed in it, and whether some wave was over its budget."""
        return {**self._counts, "failed_shards": self._failed_shards, "over_budget": self._is_over_budget}
