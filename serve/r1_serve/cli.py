"""The ``r1`` command. Every fault an operator can meet is one line on stderr; heavy imports wait for their command."""

from __future__ import annotations

import json
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from r1_cluster.plan import Plan, PlanError, shipped

from r1_serve.calibration.command import command as calibrate_command
from r1_serve.launch import pods
from r1_serve.planning.command import command as plan_command
from r1_serve.simulation.capacity import command as capacity_command
from r1_serve.simulation.command import command as simulate_command

app = typer.Typer(
    name="r1",
    help="Serve the DeepSeek-R1 family, and rehearse every layout on a laptop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

LOGS = Path(".r1/logs")

PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="a shipped plan's name (`r1 plans`) or a .yaml file")]
HttpPort = Annotated[int | None, typer.Option(help="HTTP API; 0 picks a free one [R1_HTTP_PORT, 8000]")]
GrpcPort = Annotated[int | None, typer.Option(help="gRPC for clients and workers [R1_GRPC_PORT, 8001]")]
Host = Annotated[str | None, typer.Option(help="address to listen on [R1_HOST, 127.0.0.1]")]
Processes = Annotated[int | None, typer.Option(help="router processes on the same ports [R1_PROCESSES, 1]")]
Threads = Annotated[int, typer.Option(min=1, help="OpenMP threads of each CPU worker; leave a core for the router")]


@app.command()
def plans() -> None:
    """List the shipped plans."""
    from r1_serve.launch.show import shape

    for name in shipped():
        plan = Plan.load(name)
        print(f"{name:18} {shape(plan):14} {plan.accelerators} x {plan.fleet.accelerator:5} {'; '.join(plan.reasons)}")


@app.command()
def plan_check(plan: PlanName) -> None:
    """Validate a plan and print it whole, defaults included."""
    checked = Plan.load(plan)
    print(f"# hash {checked.hash}\n{checked.to_yaml()}", end="")


@app.command()
def router(
    plan: Annotated[list[str], typer.Option(help="a plan whose workers may attach; may be given again")],
    host: Host = None,
    http_port: HttpPort = None,
    grpc_port: GrpcPort = None,
    announce: Annotated[Path | None, typer.Option(help="write the ports here once both listen")] = None,
    processes: Processes = None,
    member: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run a router until SIGTERM or SIGINT."""
    from r1_serve.router.command import run
    from r1_serve.settings import RouterSettings, load

    flags = {"host": host, "http_port": http_port, "grpc_port": grpc_port, "announce": announce, "processes": processes}
    run(plan, load(RouterSettings, **flags), member)


@app.command()
def rehearse(
    plan: PlanName = "nano-tp1",
    once: Annotated[str | None, typer.Option(help="ask this, print one JSON object, end")] = None,
    host: Host = None,
    http_port: HttpPort = None,
    grpc_port: GrpcPort = None,
    router_processes: Processes = None,
    threads: Threads = 1,
    logs: Annotated[Path, typer.Option(help="where a folder of logs is made")] = LOGS,
    announce: Annotated[Path | None, typer.Option(help="write the ports here once the sample is answered")] = None,
    started_at: Annotated[float | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run a plan's Ray placement, ranks and router on this machine, on CPU, until Ctrl-C."""
    from r1_serve.launch.rehearse import rehearse as run
    from r1_serve.settings import RouterSettings, load

    settings = load(RouterSettings, host=host, http_port=http_port, grpc_port=grpc_port, processes=router_processes)
    loaded = Plan.load(plan)
    folder = logs / f"{datetime.now():%Y%m%d-%H%M%S}-{loaded.name}"
    begun = time.time() if started_at is None else started_at
    code = run(
        loaded,
        settings=settings,
        question=once,
        threads=threads,
        logs=folder,
        started_at=begun,
        announce=announce,
    )
    raise typer.Exit(code)


@app.command()
def serve(
    plan: PlanName,
    address: Annotated[str, typer.Option(help="the Ray cluster: auto, host:port, or local to start one here")] = "auto",
    routers: Annotated[str | None, typer.Option(help="host:port,… of the routers [R1_ROUTERS, 127.0.0.1:8001]")] = None,
    threads: Threads = 1,
    temporary: Annotated[Path | None, typer.Option(help="with --address local: Ray's folder")] = None,
) -> None:
    """Put a plan's ranks on a Ray cluster; they attach to the routers and serve until SIGTERM or SIGINT."""
    from r1_serve.launch.fleet import serve as run

    run(Plan.load(plan), address=address, routers=routers, threads=threads, temporary=temporary)


@app.command()
def ask(
    question: str,
    url: Annotated[str, typer.Option(help="the router's HTTP address")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="default: the first one served")] = None,
    temperature: Annotated[float | None, typer.Option(help="default: the model's own, 0.6 for R1")] = None,
) -> None:
    """Ask one question; the thought is shown dim, then the answer, then the counts."""
    from rich.console import Console

    from r1_serve.launch.ask import ask as run
    from r1_serve.launch.show import Reader

    reader = Reader(Console(highlight=False))
    reader.end(run(url, question, model=model, temperature=temperature, show=reader))


@app.command()
def validate(
    runs: Annotated[Path, typer.Option(help="CSV of measured runs, one a line (docs/performance-model.md)")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Compare the performance model with measured runs: each prediction, and the errors by group."""
    from r1_cluster.perf.validate import validate as run

    report = run(runs)
    if as_json:
        print(json.dumps(report.as_dict(), indent=1))
        return
    from rich.console import Console

    from r1_serve.launch.validation import show

    show(report, Console(width=None if sys.stdout.isatty() else 200))


app.command("plan")(plan_command)
pods.add_to(app)
app.command("simulate")(simulate_command)
app.command("capacity")(capacity_command)
app.command("calibrate")(calibrate_command)


def main() -> None:
    """Entry point. Exit codes: 0, 1 a bug or a part that died, 2 a configuration or machine that cannot work."""
    try:
        app()
    except Exception as e:
        sys.exit(_report(e))


def _report(error: Exception) -> int:
    from r1_cluster.perf.runs import RunsError
    from r1_cluster.routing import PolicyError
    from r1_cluster.simulator import SimulationError
    from r1_cluster.workload import WorkloadError

    from r1_serve.errors import R1Error  # brings gRPC, which `r1 --help` does without

    text = " ".join(str(error).split())
    if isinstance(error, R1Error | PlanError | RunsError | PolicyError | SimulationError | WorkloadError):
        print(f"error: {text}", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    log = LOGS / "bug.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    print(f"error: this is a bug: {type(error).__name__}: {text[:300]} (log: {log})", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
