"""Text that others wrote, fit to be kept and shown: without credentials, without characters that a terminal obeys."""

import re
import unicodedata

# The key of S3 that stands behind a colon often has a slash in it; behind that of a port a slash ends it.
_USER = re.compile(r"(?<=://)(?:[^/\s:@'\"<>\[]*:(?!\d+/)[^\s'\"<>]*|[^/\s'\"<>]+)@")
# Of a query, what signs it or lets its bearer in: S3, GCS, Azure and CloudFront links, and the tokens of many APIs.
_SECRET = re.compile(
    r"(?<=[?&;])((?:[\w.%-]*(?:signature|token|secret|passw|credential|access-?_?key|api-?_?key|accessid|key-pair-id"
    r"|policy|auth)[\w.%-]*|sig|key|pwd|pass)=)[^&;#\s'\"<>]+",
    re.IGNORECASE,
)
_KEPT = "\n\t\u200c\u200d"  # the last two join letters of many scripts, and emoji
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, writing directions, lone surrogates, other line ends


def without_secrets(text: str) -> str:
    """``text`` with ``***`` for the user and password of every URI in it and for what signs its query."""
    if "://" not in text:
        return text
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))


def printable(text: str) -> str:
    """``text`` with escapes such as ``\\x1b`` for characters that would be obeyed, but for line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(_escaped(character) if _is_obeyed(character) else character for character in text)


def shown(text: str) -> str:
    """Both: what may go to a terminal, a log or a record of a failure."""
    return printable(without_secrets(text))


def check_no_secrets(name: str, uri: str | None) -> None:
    """Raises ``ValueError`` for a URI that carries credentials: it would be kept with the run and in Prefect."""
    if uri is not None and without_secrets(uri) != uri:
        raise ValueError(
            f"{name}={without_secrets(uri)!r} must carry no credentials, for it is kept with the run; give them in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...)"
        )


def _is_obeyed(character: str) -> bool:
    return character not in _KEPT and unicodedata.category(character) in _OBEYED


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode() if character != "\\" else character
