"""One file from the network to the disk: streamed, hashed on the way, whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from wnlb.runtime.errors import CheckpointError
from wnlb.runtime.files import atomic_path, make_folder

_TIMEOUT = 30  # seconds to connect, and without a byte
_BLOCK = 1 << 18  # bytes read at a time
_BAR: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
_LOCAL = ("127.0.0.1", "localhost")


def download(url: str, target: Path, *, demands: Mapping[str, str], hidden: bool | None = None) -> str:
    """Write what lies at ``url`` to ``target``, which appears only when it is whole and its hash is the demanded one.

    Args:
        url: as ``checked_address`` gives it.
        target: its folder is made. Of two processes at once the last one's file stays.
        demands: beginnings of its SHA-256 in hexadecimal digits, by who asks for them.
        hidden: no progress bar; None for none where standard error is no terminal.

    Returns:
        Its hexadecimal SHA-256.

    Raises:
        CheckpointError: it cannot be had whole, or has another hash.
        WnlbError: ``target`` cannot be written.
    """
    make_folder(target.parent)
    try:
        with _opened(url, "--sha256" in demands) as response, atomic_path(target) as temporary:
            bar = tqdm(total=response.length, desc=target.name, disable=hidden, **_BAR)
            sha256 = _written(response, temporary, bar)
            check_sha256(f"what {shown(url)} gives", sha256, demands)
            return sha256
    except _Failure as error:
        reason = f"{shown(url)} cannot be downloaded: {error}; by hand, where there is a network: "
        by_hand = f"curl -L -o {shlex.quote(target.name)} {shlex.quote(shown(url))}, put into {target.parent}"
        raise CheckpointError(" ".join(f"{reason}{by_hand}".split())) from error


def check_sha256(what: str, sha256: str, demands: Mapping[str, str]) -> None:
    """Raises CheckpointError where a hash does not begin as demanded; ``demands`` as in ``download``."""
    for whose, beginning in demands.items():
        if not sha256.startswith(beginning):
            raise CheckpointError(
                f"{what} has the SHA-256 {sha256}, but {whose} asks for {beginning}: damaged, changed, or another file"
            )


def checked_address(url: str, hashed: bool) -> str:
    """An address that may be fetched, in ASCII and without its fragment.

    Args:
        hashed: the hash of what is expected is known, so that plain http does no harm.

    Raises:
        CheckpointError: it is not valid, not of http or https, holds a password, or is plain http without a hash.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port that is no number raises
    except ValueError as error:
        raise CheckpointError(f"address {shown(url)} is not valid: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise CheckpointError(
            f"address {shown(url)} is of {parts.scheme}; expected https://... or hf://owner/repo/path"
        )
    if not host or "@" in parts.netloc:
        raise CheckpointError(f"address {shown(url)}: expected https://HOST/PATH, without a user's name or password")
    if parts.scheme == "http" and host not in _LOCAL and not hashed:
        raise CheckpointError(
            f"address {shown(url)} is plain http, where anyone on the way can change the file; "
            "use https://, or tell its hash with --sha256"
        )
    kept = "/%:@!$&'()*+,;=~?"
    return parts._replace(path=quote(parts.path, kept), query=quote(parts.query, kept), fragment="").geturl()


def shown(url: str) -> str:
    """An address for messages: without what may be secret, a password before the host or a signature in the query."""
    scheme, _, rest = url.partition("://")
    place, query, _ = rest.partition("#")[0].partition("?")
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}{'?...' if query else ''}"


def hugging_face() -> str:
    """Where the addresses hf:// lie; HF_ENDPOINT sets it, as for the package huggingface_hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class _Failure(Exception):
    """Why there is no file, to which ``download`` adds what to do."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes only where the user could have sent us, never from https to http; a token goes to no other host.

    urllib's own sends every header, a token too, wherever it is told to go.
    """

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 does not know it

    def __init__(self, hashed: bool) -> None:
        self._hashed = hashed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise _Failure(f"it redirects from https to {shown(newurl)}")
        new = urllib.request.Request(checked_address(newurl, self._hashed), headers=req.headers)
        if _origin(new.full_url) == _origin(req.full_url) and "Authorization" in req.unredirected_hdrs:
            new.add_unredirected_header("Authorization", req.unredirected_hdrs["Authorization"])
        return new


def _opened(url: str, hashed: bool) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "wnlb"})
    if token := _token(url):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        response = urllib.request.build_opener(_Redirects(hashed)).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise _Failure(f"HTTP {error.code} {error.reason}{_hint(url, error.code)}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _Failure(str(getattr(error, "reason", "") or error)) from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise _Failure("it is a web page (of GitHub and Hugging Face take the address of 'download', not of 'blob')")
    return response


def _written(response: http.client.HTTPResponse, path: Path, bar: tqdm) -> str:
    """Its hexadecimal SHA-256, once all of it is there."""
    digest, total = hashlib.sha256(), response.length
    with bar, open(path, "wb") as file:
        for block in _blocks(response):
            file.write(block)
            digest.update(block)
            bar.update(len(block))
        if total is not None and file.tell() != total:
            raise _Failure(f"it broke off after {file.tell()} of {total} bytes")
    return digest.hexdigest()


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Errors of the network as ours: beside them, what a disk raises must stay what it is."""
    try:
        while block := response.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _Failure(f"it broke off: {error}") from error


def _token(url: str) -> str:
    """What HF_TOKEN holds, for Hugging Face alone and never readable on the way."""
    token = os.environ.get("HF_TOKEN", "").strip()
    parts = urlsplit(url)
    if (
        not token
        or _origin(url) != _origin(hugging_face())
        or (parts.scheme != "https" and parts.hostname not in _LOCAL)
    ):
        return ""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CheckpointError("HF_TOKEN is not a token; expected one word, such as hf_...")
    return token


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _hint(url: str, code: int) -> str:
    if code not in (401, 403):
        return ""
    if _origin(url) != _origin(hugging_face()):
        return ", it wants a login"
    if os.environ.get("HF_TOKEN"):
        return ", HF_TOKEN may not read it: accept the terms on the page of the repository, and see whether it exists"
    return ", there is no such file, or it is not public: set HF_TOKEN to a token that may read it"
