"""What the jobs at one shard have told before they ended, for the next: which items it is to be careful with."""

from collections.abc import Mapping, Sequence
from typing import Any

_MOST_SUSPECTS = 1024  # the last ones: they travel on a command line


class ShardHistory:
    """Takes the events of one job after another."""

    def __init__(self) -> None:
        self.suspects: dict[str, int] = {}
        """Ids that were under way when a job ended, with how many jobs each has ended on its own account."""
        self.begin_job()

    def begin_job(self) -> None:
        """Notes that another job starts."""
        self.has_made = False  # anything
        self._under_way: dict[int, Sequence[str]] = {}
        self._blamed: set[str] = set()

    def take(self, event: Mapping[str, Any]) -> None:
        """Notes an event of the job."""
        match event["event"]:
            case "began":
                self._under_way[event["rank"]] = event["ids"]
            case "blamed":
                self._blamed.add(event["id"])
            case "committed":
                self.has_made = True

    def end_job(self) -> bool:
        """Notes that the job was lost; whether that tells more than before of who ends jobs.

        Which is so where an item ended it that had ended one before, or had let others be made first. Jobs that end
        at one item after another without making any are the machine's fault.
        """
        for id in (id for ids in self._under_way.values() for id in ids):
            self.suspects[id] = self.suspects.pop(id, 0)
        for id in self._blamed:
            self.suspects[id] = self.suspects.get(id, 0) + 1
        self.suspects = dict([*self.suspects.items()][-_MOST_SUSPECTS:])
        return any(self.has_made or self.suspects[id] > 1 for id in self._blamed)


def put_off(groups: Sequence[Sequence[Any]], suspects: Mapping[str, int]) -> list[list[Any]]:
    """The groups in order without the suspects among their items; then these, each alone, the worst last."""
    kept = [[item for item in group if item.id not in suspects] for group in groups]
    last = [item for group in groups for item in group if item.id in suspects]
    last.sort(key=lambda item: suspects[item.id])
    return [*filter(None, kept), *([item] for item in last)]
