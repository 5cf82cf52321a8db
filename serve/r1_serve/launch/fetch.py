"""A checkpoint's files over HTTP, each against its SHA-256: cut-off downloads go on where they ended."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from r1_serve.errors import StartupError

DONE = ".r1-sums"
ATTEMPTS = 5
CHUNK = 4 << 20


def read_sums(text: str) -> dict[str, str]:
    """``sha256sum``'s lines as name to digest. Raises StartupError naming the line."""
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        digest, _, name = line.strip().partition(" ")
        name = name.strip().removeprefix("*")
        if len(digest) != 64 or not name or name.startswith("/") or ".." in Path(name).parts:
            raise StartupError(f"line {number} of the checksums is not `sha256  name`: {line[:100]}")
        sums[name] = digest
    if not sums:
        raise StartupError("the checksums name no file")
    return sums


def complete(folder: Path, sums: Mapping[str, str]) -> bool:
    """Whether an earlier fetch of exactly these files ended."""
    try:
        return read_sums((folder / DONE).read_text(encoding="utf-8")) == dict(sums)
    except OSError:
        return False


def wait(folder: Path, sums: Mapping[str, str], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return once another process has fetched them."""
    while not complete(folder, sums):
        sleep(5)


def fetch(
    url: str,
    folder: Path,
    sums: Mapping[str, str],
    *,
    token: str | None = None,
    transport: httpx.BaseTransport | None = None,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = print,
) -> None:
    """Bring ``url``/NAME to ``folder``/NAME for each of ``sums``. What is there and right is kept.

    Raises StartupError where a file cannot be had or has another checksum.
    """
    if complete(folder, sums):
        say(f"{folder} is complete")
        return
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(
        headers=headers, timeout=60, follow_redirects=True, transport=transport, trust_env=transport is None
    ) as client:
        for name, digest in sums.items():
            _one(client, f"{url.rstrip('/')}/{name}", folder / name, digest, sleep)
            say(f"{name} is right")
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (folder / DONE).write_text(lines, encoding="utf-8")


def _one(client: httpx.Client, url: str, path: Path, digest: str, sleep: Callable[[float], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and _digest(path) == digest:
        return
    part = path.with_name(path.name + ".part")
    for attempt in range(ATTEMPTS):
        try:
            _download(client, url, part)
            break
        except httpx.HTTPError as e:
            if attempt == ATTEMPTS - 1:
                raise StartupError(f"cannot fetch {url}: {e or type(e).__name__}") from e
            sleep(2.0**attempt)
    found = _digest(part)
    if found != digest:
        part.unlink()
        raise StartupError(f"{url} has SHA-256 {found}, expected {digest}: correct the list, or the source")
    part.replace(path)


def _download(client: httpx.Client, url: str, part: Path) -> None:
    """Append what ``part`` lacks."""
    begun = part.stat().st_size if part.exists() else 0
    with client.stream("GET", url, headers={"Range": f"bytes={begun}-"} if begun else {}) as response:
        if response.status_code == 416:  # it was whole already
            return
        response.raise_for_status()
        with part.open("ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_bytes(CHUNK):
                file.write(chunk)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
