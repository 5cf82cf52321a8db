"""The tenants file is read again when it changes, and a faulty new version changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from r1_cluster.routing.tenants import hash_key
from r1_serve.errors import StartupError, UnknownKey
from r1_serve.router.tenants import TenantsFile, bearer


def content(name: str, key: str = "key") -> str:
    return f"tenants: [{{name: {name}, keys: [{hash_key(key)}]}}]"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.yaml"
    path.write_text(content("acme"))
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_without_a_file_there_is_one_tenant_whatever_the_key() -> None:
    assert TenantsFile().of_key("anything").name == "default"


def test_a_key_finds_its_tenant_and_an_unknown_one_is_refused(path: Path) -> None:
    tenants = TenantsFile(path)
    assert tenants.of_key("key").name == "acme"
    with pytest.raises(UnknownKey, match="belongs to no tenant"):
        tenants.of_key("other")
    with pytest.raises(UnknownKey, match="give an API key"):
        tenants.of_key(None)


def test_a_changed_file_counts_within_a_second(path: Path, clock: Clock) -> None:
    tenants = TenantsFile(path, clock)
    path.write_text(content("renamed"))
    assert tenants.of_key("key").name == "acme"
    clock.now = 1.0
    assert tenants.of_key("key").name == "renamed"


def test_a_replaced_file_of_the_same_size_and_time_is_seen(path: Path, clock: Clock) -> None:
    tenants = TenantsFile(path, clock)
    other = path.with_name("next.yaml")
    other.write_text(content("emca"))
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    clock.now = 1.0
    assert tenants.of_key("key").name == "emca"


@pytest.mark.parametrize("fault", ["tenants: [{name: acme, wait: 3}]", "{", "tenants: []"])
def test_a_faulty_new_version_is_logged_and_the_last_good_one_kept(
    path: Path, clock: Clock, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = TenantsFile(path, clock)
    path.write_text(fault)
    clock.now = 1.0
    assert tenants.of_key("key").name == "acme"
    assert "tenants stay as they were" in caplog.text
    path.write_text(content("mended"))
    clock.now = 2.0
    assert tenants.of_key("key").name == "mended"


def test_a_file_that_is_gone_changes_nothing(path: Path, clock: Clock) -> None:
    tenants = TenantsFile(path, clock)
    path.unlink()
    clock.now = 1.0
    assert tenants.of_key("key").name == "acme"


def test_a_router_does_not_start_with_a_faulty_file(path: Path) -> None:
    path.write_text("tenants: []")
    with pytest.raises(StartupError, match=r"R1_TENANTS: .*tenants\.yaml: tenants"):
        TenantsFile(path)
    path.write_bytes(b"\xff")
    with pytest.raises(StartupError, match=r"R1_TENANTS: .*tenants\.yaml: not UTF-8"):
        TenantsFile(path)
    with pytest.raises(StartupError, match="No such file"):
        TenantsFile(path.with_name("none.yaml"))


@pytest.mark.parametrize(
    ("header", "key"),
    [(None, None), ("", None), ("Bearer ", None), ("Bearer k", "k"), ("bearer  k ", "k"), ("Basic k", None)],
)
def test_the_key_is_what_follows_bearer(header: str | None, key: str | None) -> None:
    assert bearer(header) == key
