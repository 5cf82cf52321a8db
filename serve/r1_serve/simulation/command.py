"""``r1 simulate``: options in; a table for people, one JSON object, or a report in a folder out."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from r1_cluster.perf.batch import Speculation
from r1_cluster.perf.constants import fitted
from r1_cluster.plan import MOST_DRAFTS, Plan
from r1_cluster.routing.scaling import ScalingRules
from r1_cluster.simulator import Autoscaling, Failure, Linear, Report, Scenario, Simulation, SimulationError
from r1_cluster.simulator.costs import drafting
from r1_cluster.simulator.options import load_profile, parse_slo
from r1_cluster.workload import load


def command(
    plan: Annotated[str, typer.Option(help="a shipped plan's name (`r1 plans`) or a .yaml file, as `r1 plan` writes")],
    workload: Annotated[str, typer.Option(help="chat, math, agent, a YAML file, or a trace to fit one to")] = "chat",
    requests: Annotated[int, typer.Option(min=1, help="how many to simulate")] = 5000,
    rate: Annotated[float | None, typer.Option(help="requests/s; default: the workload's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same result")] = 0,
    gangs: Annotated[int | None, typer.Option(min=1, help="of each pool, instead of the plan's")] = None,
    budget: Annotated[int | None, typer.Option(min=0, help="thinking tokens every request asks for at most")] = None,
    slo: Annotated[str, typer.Option(help="what makes a request good: ttft=10s,ttfa=60s,tpot=100ms")] = "",
    routing: Annotated[str, typer.Option(help="a policy's name or .yaml file")] = "thinking_aware",
    fail: Annotated[
        list[str] | None, typer.Option(metavar="AT:GANG[:S]", help="a gang is lost then, and back after S seconds")
    ] = None,
    autoscale: Annotated[
        str | None, typer.Option(metavar="MIN:MAX", help="gangs come and go by the fleet's own scaling rules")
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="YAML of measured step times instead of the model's")] = None,
    refresh: Annotated[
        float | None, typer.Option(help="seconds a router's KV forecast may be old; live 1, here 5 above 32 ranks")
    ] = None,
    drafts: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_DRAFTS, help="tokens drafted a step by R1's MTP layer; default: the plan's"),
    ] = None,
    acceptance: Annotated[
        float, typer.Option(help="of a drafted token, if those before it were accepted")
    ] = fitted().serving.acceptance,
    report: Annotated[Path | None, typer.Option(help="write index.html, report.md and report.json here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Simulate a fleet under a workload: TTFT, TTFA, TPOT, throughput, preemptions, with the router's own code."""
    begun = time.perf_counter()
    for name, value in (("--rate", rate), ("--refresh", refresh)):
        if value is not None and not 0 < value < float("inf"):
            raise SimulationError(f"{name} is {value}: give a number above 0")
    if not 0 <= acceptance <= 1:
        raise SimulationError(f"--acceptance is {acceptance}: give a share from 0 to 1")
    loaded = load(workload).budgeted(budget).at_rate(rate)
    measured: Linear | None = load_profile(profile) if profile else None
    planned = Plan.load(plan)
    given = None if drafts is None else Speculation(drafts, acceptance)
    simulation = Simulation(
        planned,
        loaded,
        requests=requests,
        seed=seed,
        gangs=gangs,
        scenario=Scenario(
            failures=[_failure(text) for text in fail or ()], scaling=_autoscaling(autoscale), slo=parse_slo(slo)
        ),
        profile=measured,
        policy_name=routing,
        refresh_s=refresh,
        speculation=given or drafting(planned, measured, acceptance),
    )
    result = _run(simulation, requests, quiet=as_json)
    wall = time.perf_counter() - begun
    if report is not None:
        from r1_serve.simulation.pages import write

        write(report, result, wall, command_line=shlex.join(["r1", *sys.argv[1:]]))
    if as_json:
        print(json.dumps(result.as_dict(wall)))
        return
    from rich.console import Console

    from r1_serve.simulation.show import show

    show(result, wall, Console(width=None if sys.stdout.isatty() else 100, highlight=False), report)


def _run(simulation: Simulation, requests: int, *, quiet: bool) -> Report:
    if quiet or not sys.stderr.isatty():
        return simulation.run()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=requests)
        return simulation.run(
            lambda done, now: bar.update(task, completed=done, description=f"{now:,.0f} s of the fleet's time")
        )


def _autoscaling(text: str | None) -> Autoscaling | None:
    if text is None:
        return None
    least, _, most = text.partition(":")
    if not (least.isdigit() and most.isdigit() and 1 <= int(least) <= int(most)):
        raise SimulationError(f"--autoscale is {text!r}: give MIN:MAX gangs, such as 1:4")
    return Autoscaling(ScalingRules(min_gangs=int(least), max_gangs=int(most)))


def _failure(text: str) -> Failure:
    parts = text.split(":")
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        failure = Failure(float(parts[0]), int(parts[1]), *(float(p) for p in parts[2:]))
    except ValueError:
        raise SimulationError(f"--fail is {text!r}: give AT:GANG or AT:GANG:SECONDS, such as 60:0:300") from None
    if failure.at < 0 or failure.gang < 0 or failure.restart_s < 0:
        raise SimulationError(f"--fail is {text!r}: times and gangs count from 0")
    return failure
