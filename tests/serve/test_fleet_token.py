"""The fleet token's sources and its comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr
from r1_serve.errors import FleetTokenWrong, StartupError
from r1_serve.fleet_token import check, metadata, source
from r1_serve.settings import FleetSettings, RouterSettings, load

TOKEN, OTHER = "t" * 32, "o" * 32


def test_without_a_setting_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source(FleetSettings())() is None
    assert metadata(None) == ()
    check(None, None)
    check(TOKEN, None)


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(f"{OTHER}\n", encoding="utf-8")
    monkeypatch.setenv("R1_FLEET_TOKEN_FILE", str(file))
    assert source(load(RouterSettings))() == OTHER
    monkeypatch.setenv("R1_FLEET_TOKEN", TOKEN)
    assert source(load(FleetSettings))() == TOKEN


def test_a_file_is_read_again_when_the_token_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN, encoding="utf-8")
    read = source(FleetSettings(fleet_token_file=file))
    file.write_text(OTHER, encoding="utf-8")
    assert read() == OTHER
    file.unlink()
    with pytest.raises(StartupError, match="R1_FLEET_TOKEN_FILE: cannot read"):
        read()


@pytest.mark.parametrize("bad", ["", "short", "x" * 513, "with a blank in it", "ümlaut-and-so-forth-long"])
def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused_without_being_shown(bad: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(bad, encoding="utf-8")
    for settings in (FleetSettings(fleet_token=SecretStr(bad)), FleetSettings(fleet_token_file=file)):
        with pytest.raises(StartupError, match="openssl rand -hex 32") as refused:
            source(settings)
        assert not bad or bad not in str(refused.value)


@pytest.mark.parametrize(("sent", "what"), [(None, "no"), ("", "no"), (OTHER, "another"), (TOKEN + "x", "another")])
def test_what_is_not_the_token_is_refused(sent: str | None, what: str) -> None:
    with pytest.raises(FleetTokenWrong, match=f"sent {what} fleet token: give"):
        check(sent, TOKEN)
    check(TOKEN, TOKEN)
    check(TOKEN.encode(), TOKEN)


def test_settings_never_show_the_token() -> None:
    settings = RouterSettings(fleet_token=SecretStr(TOKEN))
    assert TOKEN not in f"{settings!r} {settings.model_dump_json()}"
