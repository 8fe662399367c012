"""Every store's way of failing, folded into three answers: exists, unavailable, misconfigured."""

import errno
import os
from datetime import UTC, datetime
from typing import Any

from fastvideo.v1.shown_text import without_secrets


class StoreUnavailable(OSError):
    """The store did not answer or could not do it now; trying again later may help."""


class StoreMisconfigured(ValueError):
    """Credentials, bucket or path are wrong; nothing helps but a change of the config."""


_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_NO_ACCESS = {
    "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "AuthorizationHeaderMalformed", "TokenRefreshRequired",
}  # fmt: skip
_REFUSED = {"403", "Forbidden"}  # without a reason: the answer to a request for the head of an object has no body
_WRONG_CLOCK = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXISTS = {"PreconditionFailed", "412"}
_LOCAL_MISCONFIGURED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTSUP, errno.ENOTDIR, errno.EISDIR}


def exists_already(error: BaseException) -> bool:
    """Whether a create failed because the object is there (S3 servers say it as FileExistsError or a bare 412)."""
    return isinstance(error, FileExistsError) or _s3_code(error) in _EXISTS


def translate(error: Exception, where: str) -> Exception:
    """``error`` as StoreUnavailable, StoreMisconfigured or FileNotFoundError; its text never quotes credentials."""
    code = _s3_code(error)
    if code in _NO_BUCKET:
        return StoreMisconfigured(f"{where}: the bucket does not exist; create it or mend the URI")
    if code in _MISSING or (code is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(errno.ENOENT, "no such object", where)
    if code in _WRONG_CLOCK:
        return StoreMisconfigured(
            f"{where}: this host's clock is too far from the server's ({code}), here it is {_now()}; set the clock"
        )
    if code in _NO_ACCESS or type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
        return StoreMisconfigured(
            f"{where}: access refused ({code or 'no credentials found'}); "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, and the rights of that key"
        )
    if code in _REFUSED:
        return StoreMisconfigured(
            f"{where}: access refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, "
            f"the rights of that key, and this host's clock, which is at {_now()}"
        )
    if code is not None and code.startswith("4") and code not in {"408", "409", "429"}:
        return StoreMisconfigured(f"{where}: the server refused the request ({code})")
    if code is None and isinstance(error, OSError) and error.errno in _LOCAL_MISCONFIGURED:
        return StoreMisconfigured(f"{where}: {error.strerror or error}; choose a writable place with hard links")
    if code is None and isinstance(error, OSError) and error.errno in _FULL:
        return StoreUnavailable(f"{where}: the disk is full ({error.strerror}); make room, what is made so far is kept")
    reason = code or (error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__)
    return StoreUnavailable(f"{where}: the store is unavailable ({reason}){_mend(where)}")


def _mend(where: str) -> str:
    """Of a server whose address the environment gives: it may not run, or not there."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is None or not where.startswith(("s3://", "s3a://")):
        return ""
    return f"; see that it runs at AWS_ENDPOINT_URL={without_secrets(endpoint)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _s3_code(error: BaseException) -> str | None:
    """The code of the S3 answer behind ``error``, which s3fs keeps as its cause."""
    for link in (error, error.__cause__):
        response: Any = getattr(link, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", "")) or None
    return None
