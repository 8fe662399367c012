"""One prompt row: its columns, their types and rules."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastvideo.v1.sampling_params import check_text
from fastvideo.v1.shown_text import without_secrets

_OVERRIDES: dict[str, tuple[str, type]] = {
    "height": ("height", int),
    "width": ("width", int),
    "num_frames": ("num_frames", int),
    "frames": ("num_frames", int),
    "num_inference_steps": ("num_inference_steps", int),
    "steps": ("num_inference_steps", int),
    "guidance_scale": ("guidance_scale", float),
    "guidance": ("guidance_scale", float),
}
IMAGE = "image"
COLUMNS = ("prompt", "negative_prompt", "seed", "repeats", IMAGE, *_OVERRIDES)
_SHOWN_CHARACTERS = 200
_LONGEST_TEXT = 100_000  # characters; no encoder reads more than a few thousand
_LARGEST_NUMBER = 2**31 - 1  # that the tables of samples hold
_LONGEST_PATH = 1024  # characters; S3 allows no longer key


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row that can be used; ``overrides`` are sampling parameters by name, ``source`` is "file:line".

    ``image`` is the path or URI of a file, or the bytes of one.
    """

    prompt: str
    source: str
    negative_prompt: str | None = None
    seed: int | None = None
    repeats: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    image: str | bytes | None = None


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that cannot, the value at fault (shortened) and why."""

    source: str
    value: str
    reason: str


def rejected(source: str, value: object, reason: str) -> RejectedRow:
    """A rejected row whose value is printable whatever it was."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return RejectedRow(source, without_secrets(text[:_SHOWN_CHARACTERS]), without_secrets(reason))


def parse_row(values: Mapping[str, Any], source: str, folder: str = "") -> PromptRow | RejectedRow:
    """The row of one file's line; white space around a prompt does not count, unknown columns are passed over.

    The path of an image is relative to ``folder``, a URI that ends in a slash or nothing.
    """
    prompt = values.get("prompt")
    try:
        text = _text("prompt", prompt).strip()
        if not text:
            raise ValueError("empty prompt")
        if len(text) > _LONGEST_TEXT:
            raise ValueError(f"prompt of {len(text)} characters must have at most {_LONGEST_TEXT}")
        if len(values) == 1:
            return PromptRow(text, source)
        negative = values.get("negative_prompt")
        seed, repeats = _number("seed", values.get("seed"), int), _number("repeats", values.get("repeats"), int)
        if seed is not None and not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} must lie in [0, 2**32)")
        if repeats is not None and repeats < 1:
            raise ValueError(f"repeats={repeats} must be at least 1")
        negative = None if negative is None else _text("negative_prompt", negative).strip()
        image = _image(values.get(IMAGE), folder)
        return PromptRow(text, source, negative, seed, repeats, _overrides(values), image)
    except ValueError as error:
        return rejected(source, "" if prompt is None else prompt, str(error))


def _overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for column, (name, kind) in _OVERRIDES.items():
        number = _number(column, values.get(column), kind)
        if number is None:
            continue
        if kind is int and number < 1:
            raise ValueError(f"{column}={number} must be at least 1")
        if kind is int and number > _LARGEST_NUMBER:
            raise ValueError(f"{column}={number} must be at most {_LARGEST_NUMBER}")
        if overrides.setdefault(name, number) != number:
            raise ValueError(f"{column}={number} contradicts {name}={overrides[name]}")
    return overrides


def _image(value: Any, folder: str) -> str | bytes | None:
    """An image's bytes, or its whole path or URI; ``datasets`` writes both into one struct."""
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
        if isinstance(value.get("bytes"), str):
            raise ValueError("image bytes are text here; they go in Parquet or Arrow files, or give a path")
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"image must be a path, a URI or (in Parquet and Arrow) bytes, not {type(value).__name__}")
    path = _text(IMAGE, value)
    if len(path) > _LONGEST_PATH or path.startswith("data:"):
        raise ValueError(f"image of {len(path)} characters is no path or URI; bytes go in Parquet or Arrow files")
    return path if "://" in path or path.startswith("/") else folder + path


def _text(column: str, value: Any) -> str:
    if value is None:
        raise ValueError(f"no {column}")
    check_text(column, value)
    if "\0" in value:
        raise ValueError(f"{column} holds the character NUL; if the file is UTF-16, save it as UTF-8")
    return str(value)


def _number(column: str, value: Any, kind: type) -> Any:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        given = float(value) if isinstance(value, str) else value  # pandas writes 81 beside empty cells as "81.0"
        number = kind(given)
        if kind is int and number != given:
            raise ValueError
        if not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{column}={value!r} must be {wanted}") from None
    return number
