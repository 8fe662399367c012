"""Image files: read from anywhere, told bad from good, decoded the one way."""

import errno
import io
import struct
import warnings
from typing import Any

import fsspec
import numpy as np
from PIL import Image, ImageOps

from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable, translate
from fastvideo.v1.dataset.sources.image_source import MAX_BYTES, check_source, open_options
from fastvideo.v1.shown_text import without_secrets

# What Pillow's decoders raise on bytes that are no image or a broken one, by its code and by fuzzing.
_NOT_DECODABLE = (
    OSError, ValueError, SyntaxError, EOFError, RuntimeError, TypeError, LookupError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
_S3, _WEB = ("s3://", "s3a://"), ("http://", "https://")
MAX_PIXELS = 2**26  # a quarter GiB while it is decoded
# Pillow knows fifty kinds, some of which start other programs.
_KINDS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of larger ones, which are refused here
_EIGHTH = (1, 1)  # a size that asks a JPEG's decoder for the smallest scale it has, an eighth


class BadImage(ValueError):
    """An image that is not there, or that cannot be decoded."""


def read_image(source: str, *, from_remote: bool = False) -> bytes:
    """The bytes of the file at a path or a URI, 64 MiB at most.

    ``from_remote`` says that prompts of another host name it: then it may not be a file of this one, nor lie on its
    network. Raises :class:`BadImage` if there is no such file, it may not be read or cannot be, ``StoreUnavailable``
    if a disk or an S3 server fails, so that no image can be told. A web server is only its own images' affair.
    """
    try:
        check_source(source, from_remote)
        with fsspec.open(source, "rb", **open_options(source, from_remote)) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES / 2**20:g} MiB")
        return data
    except (ValueError, ImportError) as error:  # also: no URI, or one that fsspec lacks a package for
        raise _bad(source, f"cannot be read: {error}") from None
    except _reading_errors(source) as error:
        raise _refusal(source, error) from error


def _reading_errors(source: str) -> tuple[type[Exception], ...]:
    """What reading raises: for a URI also its package's own errors, which need not be the system's."""
    if source.startswith(_S3):
        from botocore.exceptions import BotoCoreError

        return OSError, BotoCoreError
    if source.startswith(_WEB):
        from aiohttp import ClientError

        return OSError, ClientError
    return (OSError,)


def _refusal(source: str, error: Exception) -> Exception:
    if source.startswith(_WEB):
        return _bad(source, _web_reason(error))
    translated = translate(error, source)
    if isinstance(translated, FileNotFoundError):
        return _bad(source, "does not exist")
    is_too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    if isinstance(translated, StoreUnavailable) and not is_too_long:
        return translated
    reason = error.strerror if isinstance(error, OSError) else None
    return _bad(source, f"cannot be read: {reason or translated}")


def _bad(source: str, reason: str) -> BadImage:
    return BadImage(without_secrets(f"image {source!r} {reason}"))


def _web_reason(error: BaseException) -> str:
    """What lies behind the missing file that fsspec makes of every answer."""
    from aiohttp import ClientResponseError

    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    answer = f"the server answers {error.status}" if isinstance(error, ClientResponseError) else error
    return f"cannot be read: {answer}"


def check_image(data: bytes) -> None:
    """Raises :class:`BadImage` unless ``data`` decodes to its end; a JPEG does so at an eighth of its size."""
    _decode(data, draft=True)


def decode_image(data: bytes) -> np.ndarray:
    """The picture as one looks at it, its EXIF orientation applied, uint8 ``[h, w, 3]``.

    As ``diffusers.utils.load_image`` has it. Raises :class:`BadImage`.
    """
    return np.array(_decode(data, draft=False))


def _decode(data: bytes, draft: bool) -> Any:
    try:
        with Image.open(io.BytesIO(data), formats=_KINDS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS / 1e6:.0f} million")
            if draft:
                image.draft(None, _EIGHTH)
            return ImageOps.exif_transpose(image).convert("RGB")
    except _NOT_DECODABLE as error:
        reason = (
            f"no image of a kind we read: {', '.join(_KINDS)}"
            if isinstance(error, Image.UnidentifiedImageError)
            else error
        )
        raise BadImage(f"image cannot be decoded ({len(data)} bytes): {reason}") from None
