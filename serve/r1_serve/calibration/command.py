"""``r1 calibrate``: measures a running fleet and writes the profile that ``r1 simulate --profile`` takes."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:  # they bring httpx and gRPC, which `r1 --help` does without
    from r1_cluster.simulator.calibration import Calibration

    from r1_serve.calibration.measure import Grid, Measured

BUSY = 0.1  # of the cores, before: from here on the result says so

COSTS = {
    "step_s": "a step's fixed part",
    "sequence_s": "each sequence in it",
    "kv_token_s": "each cached token of the gang",
    "prompt_token_s": "each prompt token computed",
    "prompt_pair_s": "each pair of one and a token before it",
    "prompt_step_s": "what any prompts add to a step beside that",
    "first_token_s": "a first token's way besides the steps",
}


def command(
    router: Annotated[str, typer.Option(help="the router's HTTP address")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="default: the first one served")] = None,
    key: Annotated[str | None, typer.Option(help="API key, where the router asks for one [R1_API_KEY]")] = None,
    most: Annotated[
        int, typer.Option(min=2, help="sequences a rank, up to which batches are measured, as far as it has seats")
    ] = 64,
    minutes: Annotated[float, typer.Option(min=0, help="after so long no further batch is begun")] = 4.0,
    seconds: Annotated[float, typer.Option(min=0.2, max=600, help="a step's time is the mean of")] = 3.0,
    force: Annotated[bool, typer.Option("--force", help="although others ask this fleet too")] = False,
    out: Annotated[Path | None, typer.Option(help="write the profile here, for r1 simulate --profile")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Measure what a step costs on a running fleet, against batch, context and prompt. Nobody else may ask it then."""
    from r1_cluster.simulator.calibration import CalibrationError, calibrate
    from rich.console import Console

    from r1_serve.calibration.measure import Grid
    from r1_serve.calibration.router import CalibrationFailed
    from r1_serve.settings import secret

    busy, grid = others(router), Grid.up_to(most, seconds, minutes)
    with Console(stderr=True).status("") as status:
        found = asyncio.run(_measure(router, model, key or secret("R1_API_KEY"), grid, force, status.update))
    try:
        fitted = calibrate(found.steps, found.firsts, found.besides)
    except CalibrationError as e:
        raise CalibrationFailed(f"{e}; give --most") from e
    if out is not None:
        try:
            out.write_text(profile(found, fitted, router, busy), encoding="utf-8")
        except OSError as e:
            raise CalibrationFailed(f"--out {out}: cannot be written: {e.strerror}") from e
    if as_json:
        print(json.dumps(as_dict(found, fitted, busy)))
    else:
        _show(found, fitted, busy, Console(width=None if sys.stdout.isatty() else 100, highlight=False), out)


async def _measure(url: str, model: str | None, key: str | None, grid: Grid, force: bool, told: Any) -> Measured:
    import httpx

    from r1_serve.calibration.measure import measure
    from r1_serve.calibration.router import Router

    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    # trust_env: a proxy of the environment must not stand between us and a fleet that is measured.
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits, trust_env=False) as client:
        return await measure(Router(client, model), grid, force=force, told=told)


def others(url: str) -> float | None:
    """The share of this machine's cores in use over a second before anything is asked; None where the router is on
    another machine, whose cores are not seen from here."""
    import psutil

    return psutil.cpu_percent(1.0) / 100 if urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost") else None


def as_dict(found: Measured, fitted: Calibration, busy: float | None) -> dict[str, Any]:
    """Costs in seconds, and each measurement with the fit's relative error. ``busy``: see :func:`others`."""
    return {
        **costs(fitted),
        "fleet": asdict(found.fleet),
        "cores_busy_before": busy,
        "steps": [
            asdict(step) | {"error": round(error, 4)}
            for step, error in zip(found.steps, fitted.step_errors, strict=True)
        ],
        "firsts": [
            asdict(first) | {"error": round(error, 4)}
            for first, error in zip(found.firsts, fitted.first_errors, strict=True)
        ],
        "besides": [asdict(beside) for beside in found.besides],
    }


def costs(fitted: Calibration) -> dict[str, float]:
    return {name: float(f"{getattr(fitted.linear, name):.4g}") for name in COSTS}


def profile(found: Measured, fitted: Calibration, url: str, busy: float | None = None) -> str:
    """YAML for ``--profile``: the costs, and as comments where they come from."""
    fleet, errors = found.fleet, [abs(error) for error in fitted.step_errors]
    points = [
        f"#   {step.sequences} sequences of a gang, {step.cached:.0f} cached tokens: {_ms(step.seconds)} ({error:+.1%})"
        for step, error in zip(found.steps, fitted.step_errors, strict=True)
    ]
    firsts = [
        f"#   a first token after {first.prompt_tokens}: {_ms(first.seconds)} ({error:+.1%})"
        for first, error in zip(found.firsts, fitted.first_errors, strict=True)
    ]
    cores = [] if busy is None else [f"# {busy:.0%} of this machine's cores were in use before"]
    lines = [
        f"# r1 calibrate --router {url}, {datetime.now(UTC):%Y-%m-%d}",
        f"# {fleet.model}, plan {fleet.plan}: {fleet.gangs} gangs of {fleet.ranks // fleet.gangs} ranks",
        f"# {len(errors)} step times fitted to {statistics.mean(errors):.1%} in the mean, {max(errors):.1%} at worst",
        *points,
        *firsts,
        *cores,
        *(f"{name}: {value:.4g}  # {COSTS[name]}" for name, value in costs(fitted).items()),
    ]
    return "\n".join(lines) + "\n"


def _show(found: Measured, fitted: Calibration, busy: float | None, console: Any, out: Path | None) -> None:
    from rich.table import Table

    fleet = found.fleet
    console.print(f"[bold]{fleet.model}[/], plan {fleet.plan}: {fleet.gangs} gangs, {fleet.ranks} ranks")
    steps = Table("sequences a gang", "cached tokens", "step", "fit", box=None, header_style="dim")
    for step, error in zip(found.steps, fitted.step_errors, strict=True):
        steps.add_row(str(step.sequences), f"{step.cached:,.0f}", _ms(step.seconds), f"{error:+.1%}")
    firsts = Table("prompt tokens", "first token", "fit", box=None, header_style="dim")
    for first, error in zip(found.firsts, fitted.first_errors, strict=True):
        firsts.add_row(str(first.prompt_tokens), _ms(first.seconds), f"{error:+.1%}")
    told = Table("", "seconds", "", box=None, header_style="dim")
    for name, value in costs(fitted).items():
        told.add_row(name, f"{value:.3g}", COSTS[name])
    for table in (steps, firsts, told):
        console.print(table)
    if busy is not None and busy > BUSY:
        console.print(f"[yellow]{busy:.0%} of this machine's cores were in use before: measure on a quiet one[/]")
    if out is not None:
        console.print(f"Wrote {out}. Next: r1 simulate --plan {fleet.plan} --profile {out}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
