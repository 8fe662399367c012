"""Users' own packages: the functions behind the entry points of the group ``fastvideo.plugins``.

Such a function takes nothing and registers models, pipelines and attention backends. It is called once in every process
that consults a registry: the command line, the planner, each rank of a job.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from threading import RLock

GROUP = "fastvideo.plugins"

_lock = RLock()
_called: set[EntryPoint] = set()


def load_plugins() -> None:
    """Calls every plugin that was not called yet.

    Raises ``ValueError`` naming the package of one that cannot be imported or fails.
    """
    with _lock:
        for point in _entry_points():
            if point not in _called:
                _called.add(point)  # before the call: a plugin may itself consult a registry
                _call(point)


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)))


def _call(point: EntryPoint) -> None:
    try:
        point.load()()
    except Exception as error:  # others' code may raise anything; what matters to the reader is whose it is
        _called.discard(point)
        package = point.dist.name if point.dist else point.module
        raise ValueError(
            f"plugin {point.name!r} ({point.value}) of package {package!r} cannot be loaded: "
            f"{type(error).__name__}: {error}; mend the package or uninstall it"
        ) from error
