"""One logger for each module, aware of the rank it runs on."""

import logging
import os
import sys

from fastvideo.v1.shown_text import shown

_ROOT = "fastvideo"


class _RankFilter(logging.Filter):
    """Adds the torchrun rank to each record and keeps the INFO lines of other ranks out."""

    def filter(self, record: logging.LogRecord) -> bool:
        rank = int(os.environ.get("RANK", "0"))
        record.rank = f"[rank {rank}] " if "RANK" in os.environ else ""
        return rank == 0 or record.levelno > logging.INFO


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _configure_root() -> None:
    root = logging.getLogger(_ROOT)
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(rank)s%(name)s: %(message)s", "%H:%M:%S"))
    handler.addFilter(_RankFilter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def init_logger(name: str) -> logging.Logger:
    """The logger of module ``name``; it writes to standard error, INFO and above, rank 0's INFO only."""
    _configure_root()
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")
