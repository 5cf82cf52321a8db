"""The `r1` commands that pods of the Helm chart run beside router and ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

RunDir = Annotated[Path, typer.Option(envvar="R1_RUN_DIR", help="the node's run folder")]


def leave(
    run_dir: RunDir = Path("/tmp/r1"),  # noqa: S108
    timeout: Annotated[float, typer.Option(min=0, help="seconds to wait")] = 900.0,
    head: Annotated[bool, typer.Option("--head", help="of a Ray head: wait until the other nodes have gone")] = False,
) -> None:
    """Ask the ranks on this node to hand over and go, and wait for them: a pod's preStop hook."""
    from r1_serve.workers import leaving

    if head:
        still, what = leaving.outwait(leaving.other_nodes, timeout), "nodes"
    else:
        still, what = leaving.leave(run_dir, timeout), "ranks"
    if still:
        print(f"{still} {what} are still there after {timeout:.0f} s; what runs there goes on elsewhere")


def smoke(
    question: str,
    url: Annotated[str, typer.Option(help="the router's HTTP address")] = "http://127.0.0.1:8000",
    grpc: Annotated[str, typer.Option(help="the router's gRPC host:port")] = "127.0.0.1:8001",
    model: Annotated[str, typer.Option(help="default: the only one served")] = "",
    max_tokens: Annotated[int, typer.Option(min=1)] = 1024,
    expect: Annotated[str | None, typer.Option(help="must be in the answer")] = None,
) -> None:
    """Ask one question over HTTP and over gRPC; print both as one JSON object [key: R1_API_KEY]."""
    from r1_serve.launch.smoke import smoke as run
    from r1_serve.settings import secret

    key = secret("R1_API_KEY")
    print(json.dumps(run(question, url=url, target=grpc, model=model, max_tokens=max_tokens, expect=expect, key=key)))


def fetch(
    url: Annotated[str, typer.Argument(help="what the names of the checksums are below")],
    folder: Path,
    sums: Annotated[Path, typer.Option(help="a SHA256SUMS file: the files, and what they must be")],
    wait: Annotated[bool, typer.Option("--wait", help="wait until another process has fetched them")] = False,
) -> None:
    """Bring a checkpoint's files here, each checked against its SHA-256 [token: R1_FETCH_TOKEN]."""
    from r1_serve.errors import StartupError
    from r1_serve.launch import fetch as fetching
    from r1_serve.settings import secret

    try:
        wanted = fetching.read_sums(sums.read_text(encoding="utf-8"))
    except OSError as e:
        raise StartupError(f"cannot read {sums}: {e.strerror}") from e
    if wait:
        fetching.wait(folder, wanted)
    else:
        fetching.fetch(url, folder, wanted, token=secret("R1_FETCH_TOKEN"))


def add_to(app: typer.Typer) -> None:
    for command in (leave, smoke, fetch):
        app.command()(command)
