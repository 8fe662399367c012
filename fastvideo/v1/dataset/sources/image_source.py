"""Where images may come from: an allow-list of schemes, and of addresses for the web."""

import errno
import ipaddress
import os
import socket
import stat
from typing import Any
from urllib.parse import urlsplit

MAX_BYTES = 64 * 2**20
_LOCAL = {"", "file", "local", "memory"}  # memory is this process's own
_WEB = {"http", "https"}
_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"}


def scheme_of(uri: str) -> str:
    """The scheme of a URI, empty for a path; raises ``ValueError`` for what is no URI."""
    return urlsplit(uri).scheme.lower() if "://" in uri else ""


def is_remote(uri: str) -> bool:
    """Whether what ``uri`` holds was written elsewhere, by somebody who has no business with this host's files."""
    return scheme_of(uri) not in _LOCAL


def check_source(source: str, from_remote: bool) -> None:
    """Raises ``ValueError`` for an image that a prompt row, ``from_remote`` or of a local file, may not name."""
    if "::" in source:
        raise ValueError("chained URIs are not read; name the file itself")
    scheme = scheme_of(source)
    if scheme not in _LOCAL | _WEB | _STORES:
        raise ValueError(f"scheme {scheme!r} is not read; there are: paths, {', '.join(sorted(_STORES | _WEB))}")
    if "@" in urlsplit(source).netloc and scheme:
        raise ValueError("a URI with credentials in it; give them in the environment")
    if scheme not in _LOCAL:
        return
    if from_remote:
        raise ValueError("prompts from another host may not name a file of this one; put it beside them")
    path = source if not scheme else source.partition("://")[2]
    if scheme != "memory" and os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("no regular file")


def open_options(source: str, from_remote: bool) -> dict[str, Any]:
    """What ``fsspec.open`` needs to hold a web source, and wherever it redirects to, to the addresses allowed."""
    if scheme_of(source) not in _WEB:
        return {}
    return {"get_client": _public_client if from_remote else _client}


async def _client(**settings: Any) -> Any:
    """A session that reaches all but addresses which no server of images has, such as a cloud's metadata service."""
    return _session(_connect_beyond_the_link, settings)


async def _public_client(**settings: Any) -> Any:
    """A session that reaches the public internet alone."""
    return _session(_connect_public, settings)


def _session(connect: Any, settings: dict[str, Any]) -> Any:
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=connect), **settings)


def _connect_beyond_the_link(info: tuple) -> socket.socket:
    address = _address(info)
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
        raise PermissionError(errno.EACCES, f"no images are read from {address}")
    return socket.socket(*info[:3])


def _connect_public(info: tuple) -> socket.socket:
    address = _address(info)
    if not address.is_global or address.is_multicast:
        raise PermissionError(errno.EACCES, f"prompts from another host may not name {address}, which is not public")
    return socket.socket(*info[:3])


_METADATA = {ipaddress.ip_address(address) for address in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")}


def _address(info: tuple) -> Any:
    """The address that is connected to, after names and redirects are resolved."""
    address = ipaddress.ip_address(info[4][0].partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
