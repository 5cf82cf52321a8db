"""What a page names exists: files, headings, make's targets, commands and their options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from r1_serve.cli import app
from r1_serve.settings import RouterSettings, WorkerSettings

ROOT = Path(__file__).parents[2]
ROOMS = ("docs", "kernels", "serve")
PAGES = sorted([ROOT / "README.md", *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """As GitHub names them in links."""
    found = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", prose(page)):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not heading or heading in headings(file), f"{target}#{heading}"


@every_page
def test_every_make_command_is_a_target(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= TARGETS


@every_page
def test_every_r1_command_and_its_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, rest in re.findall(r"(?:^(?:\$ )?|`)(?:\.venv/bin/)?r1 ([a-z-]+)([^`\n]*)", text, re.MULTILINE):
        assert name in COMMANDS, name
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts + parameter.secondary_opts}
        options = re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest.split("&&")[0].split("|")[0].split("#")[0])
        assert set(options) <= known, f"r1 {name}{rest}"


def test_every_setting_is_explained() -> None:
    names = {f"R1_{name.upper()}" for kind in (RouterSettings, WorkerSettings) for name in kind.model_fields}
    told = {name for page in PAGES for name in re.findall(r"`(R1_[A-Z_]+)`", page.read_text(encoding="utf-8"))}
    assert names <= told
