"""Bring one URL into a partial file: range requests, tries with growing pauses, a size limit."""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import Any, NoReturn, Optional

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0  # between two blocks; the authors' host is slow at times
TRIES = 4  # in a row without a new byte
PAUSE_SECONDS = 1.0  # before the second try, doubled before each further one
MAX_BYTES = 256 * 2**20  # where the size of the file is not known
BLOCK = 2**16


class Unavailable(Exception):
    """This place cannot give the file; the next one may."""


class Interrupted(Exception):
    """Worth another try at the same place."""


def transfer(url: str, part: str, limit: Optional[int] = None) -> bool:
    """Complete the partial file ``part`` with what ``url`` gives; its content is not judged.

    Parameters
    ----------
    url : str
        ``http://`` or ``https://``; redirections are followed.
    part : str
        Partial file; what it holds already is continued. It stays when the transfer fails.
    limit : int, optional
        More bytes than this are not taken; default: `MAX_BYTES`.

    Returns
    -------
    bool
        Whether the file was put together from more than one request.

    Raises
    ------
    Unavailable
        The file cannot be had there; the message is a short reason.
    OSError
        ``part`` cannot be written.
    """
    limit = MAX_BYTES if limit is None else limit
    failures, requests_made, continued = 0, 0, _size(part) > 0
    while True:
        before = _size(part)
        try:
            _request(url, part, limit)
            return continued or requests_made > 0
        except Interrupted as error:
            requests_made += 1
            # Progress starts the count afresh: a host that cuts often is slow, not unusable.
            failures = 1 if _size(part) > before else failures + 1
            if failures >= TRIES:
                raise Unavailable(f"{error} (tried {TRIES} times)") from error
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def _request(url: str, part: str, limit: int) -> None:
    """One request that appends to ``part``."""
    import requests
    import urllib3

    offset = _size(part)
    # Some servers declare .gz files as an encoding and would have them decompressed on the way.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    timeout = (CONNECT_SECONDS, READ_SECONDS)
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            start, total = _accept(response, part, offset)
            _within_limit(total, part, limit)
            _receive(response.raw, part, (start, total, limit))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        _raise_for(error)


def _accept(response: Any, part: str, offset: int) -> tuple[int, Optional[int]]:
    """From the answer's head: where its bytes start and how long the whole file is, if known."""
    status = response.status_code
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match and int(match[1]) == offset:
            total = None if match[2] == "*" else int(match[2])
            return offset, total
    if status in (206, 416) and offset:
        os.remove(part)
        raise Interrupted("the server could not continue the partial file")
    if status == 429 or status >= 500:
        raise Interrupted(f"HTTP {status} {response.reason}")
    if status != 200:
        raise Unavailable(f"HTTP {status} {response.reason}")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _receive(raw: Any, part: str, sizes: tuple[int, Optional[int], int]) -> None:
    """Append to ``part``; ``sizes`` are where the bytes begin, the whole size and the limit."""
    from tqdm import tqdm

    start, total, limit = sizes
    name = os.path.basename(part).rpartition(".")[0].rpartition(".")[0]
    with (
        open(part, "r+b" if start else "wb") as stream,
        tqdm(
            desc=name,
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
        ) as bar,
    ):
        stream.seek(start)
        position = start
        while True:
            block = raw.read(BLOCK, decode_content=False)
            if not block:
                break
            position += len(block)
            _within_limit(position, part, limit)
            stream.write(block)
            bar.update(len(block))
        flush(stream)
    if total is not None and position < total:
        raise Interrupted(f"cut off after {position:,} of {total:,} bytes")


def _within_limit(size: Optional[int], part: str, limit: int) -> None:
    if size is not None and size > limit:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
        raise Unavailable(f"larger than {limit:,} bytes, which the file is not")


def _raise_for(error: Exception) -> NoReturn:
    """Sort an error of the connection into 'try again' and 'try elsewhere', with a short reason."""
    import requests
    import urllib3

    text = repr(error)
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        if isinstance(error, requests.ConnectTimeout):
            raise Unavailable(f"no answer within {CONNECT_SECONDS:g} s") from error
        raise Interrupted(f"no data for {READ_SECONDS:g} s") from error
    for sign, reason in (
        ("NameResolution", "host not found"),
        ("getaddrinfo", "host not found"),
        ("Name or service", "host not found"),
        ("Temporary failure in name", "host not found"),
        ("Connection refused", "connection refused"),
        ("Network is unreachable", "network unreachable"),
        ("ProxyError", "the proxy gave no connection"),
        ("SSLError", "no valid TLS certificate"),
        ("TooManyRedirects", "too many redirects"),
        ("InvalidSchema", "redirected to something that is not http"),
        ("InvalidURL", "not a valid address"),
        ("LocationParseError", "not a valid address"),
    ):
        if sign in text:
            raise Unavailable(reason) from error
    raise Interrupted(f"connection broken ({type(error).__name__})") from error


def flush(stream: Any) -> None:
    """Write what ``stream`` holds back through to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0
