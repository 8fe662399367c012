"""Tensors and scalars in one safetensors file that can tell whether it is damaged; equal content is equal bytes."""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastvideo.v1.dataset.canonical import canonical_json

if TYPE_CHECKING:
    from torch import Tensor

_STATE = "fastvideo"


class DamagedObject(Exception):
    """An object that is there and is not what was written."""


def pack_state(tensors: Mapping[str, "Tensor"], scalars: Mapping[str, Any]) -> bytes:
    """The file's bytes; tensors may lie on any device, scalars are whatever JSON holds."""
    import safetensors.torch

    plain = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    entries, body = _split(plain)
    state = {"scalars": dict(scalars), "digest": _digest(entries, scalars, body)}
    header = canonical_json({"__metadata__": {_STATE: canonical_json(state).decode()}, **entries})
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def unpack_state(data: bytes, name: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """The tensors, on the CPU, and the scalars; raises :class:`DamagedObject`, naming the object ``name``."""
    import safetensors.torch

    scalars = verify_state(data, name)
    return safetensors.torch.load(data), scalars


def verify_state(data: bytes, name: str) -> dict[str, Any]:
    """The scalars, once length and digest are found right; needs no torch. Raises :class:`DamagedObject`."""
    try:
        entries, body = _split(data)
        state = json.loads(entries.pop("__metadata__")[_STATE])
        scalars, expected = state["scalars"], state["digest"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedObject(f"{name}: cut short or no state file of ours ({len(data)} bytes)") from error
    if _digest(entries, scalars, body) != expected:
        raise DamagedObject(f"{name}: its content does not match its digest ({len(data)} bytes)")
    return scalars


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]


def _digest(entries: Mapping[str, Any], scalars: Mapping[str, Any], body: memoryview) -> str:
    digest = hashlib.sha256(canonical_json([entries, dict(scalars)]))
    digest.update(body)
    return digest.hexdigest()
