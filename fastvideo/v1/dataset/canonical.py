"""Digests of plain values: the same values, however they came, give the same digest."""

import hashlib
import json
from typing import Any


def canonical_json(values: Any) -> bytes:
    """Sorted, compact UTF-8 JSON; not-a-number and lone surrogates raise ``ValueError``."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest(values: Any, length: int) -> str:
    """The first ``length`` hexadecimal digits of the SHA-256 of the values' canonical JSON."""
    return hashlib.sha256(canonical_json(values)).hexdigest()[:length]
