"""Image files: read from anywhere, told bad from good, decoded the one way."""

import errno
import io
import struct
from typing import Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
from PIL import Image, ImageOps

from fastvideo.v1.dataset.store_errors import StoreUnavailable, translate

# What Pillow's decoders raise on bytes that are no image or a broken one, by its code and by fuzzing.
_NOT_DECODABLE = (
    OSError, ValueError, SyntaxError, EOFError, RuntimeError, TypeError, LookupError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
_S3, _WEB = ("s3://", "s3a://"), ("http://", "https://")
_EIGHTH = (1, 1)  # a size that asks a JPEG's decoder for the smallest scale it has, an eighth


class BadImage(ValueError):
    """An image that is not there, or that cannot be decoded."""


def read_image(source: str) -> bytes:
    """The bytes of the file at a path or any fsspec URI.

    Raises :class:`BadImage` if there is no such file or it cannot be read, ``StoreUnavailable`` if a disk or an S3
    server fails, so that no image can be told. A web server is only its own images' affair.
    """
    try:
        if "@" in urlsplit(source).netloc:
            raise BadImage("image is a URI with credentials in it; give them in the environment")
        with fsspec.open(source, "rb") as file:
            return file.read()
    except BadImage:
        raise
    except (ValueError, ImportError) as error:  # no URI, a protocol that fsspec does not know or lacks a package for
        raise BadImage(f"image {source!r} cannot be read: {error}") from None
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
        return BadImage(f"image {source!r} {_web_reason(error)}")
    translated = translate(error, source)
    if isinstance(translated, FileNotFoundError):
        return BadImage(f"image {source!r} does not exist")
    is_too_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    if isinstance(translated, StoreUnavailable) and not is_too_long:
        return translated
    reason = error.strerror if isinstance(error, OSError) else None
    return BadImage(f"image {source!r} cannot be read: {reason or translated}")


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
        with Image.open(io.BytesIO(data)) as image:
            if draft:
                image.draft(None, _EIGHTH)
            return ImageOps.exif_transpose(image).convert("RGB")
    except _NOT_DECODABLE as error:
        reason = "no kind of image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise BadImage(f"image cannot be decoded ({len(data)} bytes): {reason}") from None
