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
_EIGHTH = (1, 1)  # a size that asks a JPEG's decoder for the smallest scale it has, an eighth


class BadImage(ValueError):
    """An image that is not there, or that cannot be decoded."""


class ImageGone(BadImage):
    """An image that is not where it was said to be."""


def read_image(source: str) -> bytes:
    """The bytes of the file at a path or any fsspec URI.

    Raises :class:`BadImage` if there is no such file or it cannot be read, ``StoreUnavailable`` if trying again later
    may help.
    """
    if "@" in urlsplit(source).netloc:
        raise BadImage("image is a URI with credentials in it; give them in the environment")
    try:
        with fsspec.open(source, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ImageGone(f"image {source!r} does not exist") from None
    except OSError as error:
        translated = translate(error, source)
        if isinstance(translated, StoreUnavailable) and error.errno != errno.ENAMETOOLONG:
            raise translated from error
        raise BadImage(f"image {source!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, ImportError) as error:  # a protocol that fsspec does not know, or lacks a package for
        raise BadImage(f"image {source!r} cannot be read: {error}") from None


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
