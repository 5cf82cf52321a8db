"""Fetched weights are exactly what the checksums say, however often the line breaks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from r1_serve.errors import StartupError
from r1_serve.launch.fetch import complete, fetch, read_sums, wait

FILES = {"config.json": b'{"a": 1}', "model/part-1.safetensors": bytes(range(256)) * 40}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


def sums_text() -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in SUMS.items())


class Source:
    """Serves ``FILES``; ``faults`` answers first, one request each."""

    def __init__(self, *faults: Callable[[httpx.Request], httpx.Response]) -> None:
        self.faults = list(faults)
        self.asked: list[tuple[str, str | None, str | None]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        headers = request.headers
        self.asked.append((request.url.path, headers.get("range"), headers.get("authorization")))
        if self.faults:
            return self.faults.pop(0)(request)
        data = FILES[request.url.path.removeprefix("/r1/")]
        begun = int(headers.get("range", "bytes=0-")[6:-1])
        if begun >= len(data):
            return httpx.Response(416)
        return httpx.Response(206 if begun else 200, content=data[begun:])


def bring(folder: Path, source: Source, **options: str) -> None:
    quiet: list[object] = []
    fetch(
        "https://hub.example.com/r1/",
        folder,
        SUMS,
        transport=httpx.MockTransport(source),
        sleep=quiet.append,
        say=quiet.append,
        **options,
    )


def test_every_file_arrives_whole_and_the_folder_is_then_complete(tmp_path: Path) -> None:
    assert not complete(tmp_path, SUMS)
    bring(tmp_path, Source(), token="secret")
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES
    assert complete(tmp_path, SUMS)
    assert not complete(tmp_path, {**SUMS, "more": "0" * 64})
    again = Source()
    bring(tmp_path, again)
    assert again.asked == []


def test_a_token_is_sent_as_a_bearer_token(tmp_path: Path) -> None:
    source = Source()
    bring(tmp_path, source, token="secret")
    assert {authorization for _, _, authorization in source.asked} == {"Bearer secret"}


def test_a_download_that_was_cut_off_goes_on_where_it_ended(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/part-1.safetensors.part").write_bytes(FILES["model/part-1.safetensors"][:1000])
    source = Source()
    bring(tmp_path, source)
    assert ("/r1/model/part-1.safetensors", "bytes=1000-", None) in source.asked
    assert (tmp_path / "model/part-1.safetensors").read_bytes() == FILES["model/part-1.safetensors"]


def test_a_part_that_was_whole_already_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json.part").write_bytes(FILES["config.json"])
    bring(tmp_path, Source())
    assert (tmp_path / "config.json").read_bytes() == FILES["config.json"]


def test_a_source_that_stumbles_is_asked_again(tmp_path: Path) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone")

    bring(tmp_path, Source(broken, lambda _: httpx.Response(503)))
    assert complete(tmp_path, SUMS)


def test_a_file_with_another_checksum_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"config.json has SHA-256 [0-9a-f]{64}, expected"):
        bring(tmp_path, Source(lambda _: httpx.Response(200, content=b"evil")))
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_stays_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot fetch https://hub.example.com/r1/config.json"):
        bring(tmp_path, Source(*[lambda _: httpx.Response(404)] * 5))


def test_waiting_ends_with_the_fetch(tmp_path: Path) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        bring(tmp_path, Source())

    wait(tmp_path, SUMS, sleep=sleep)
    assert len(slept) == 1


def test_checksums_are_read_as_sha256sum_writes_them() -> None:
    assert read_sums(sums_text()) == SUMS
    assert read_sums(f"{'0' * 64} *binary\n") == {"binary": "0" * 64}


@pytest.mark.parametrize("text", ["", "abc  name", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  ../up", "0" * 64])
def test_checksums_that_are_none_or_lead_astray_are_refused(text: str) -> None:
    with pytest.raises(StartupError):
        read_sums(text)
