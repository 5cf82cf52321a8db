"""The launcher with stub children. ARGV: folder, router's mode, fleet's mode, question or an empty string."""

import sys
import time
from pathlib import Path

from r1_cluster.plan import Plan
from r1_serve import cli
from r1_serve.launch import rehearse
from r1_serve.settings import RouterSettings

folder, router, fleet, question = Path(sys.argv[1]), *sys.argv[2:]
HERE = Path(__file__).parent
# A launcher that is killed leaves this folder behind; the test's own folder takes it.
(folder / "temporary").mkdir()
rehearse._temporary = lambda: folder / "temporary"
commands = rehearse.Commands(
    router=lambda plan, settings, announce: [
        sys.executable,
        str(HERE / "router.py"),
        str(announce),
        router,
        str(folder / "announced.json"),
    ],
    fleet=lambda plan, routers, threads, temporary: [
        sys.executable,
        str(HERE / "fleet.py"),
        str(folder / "ray"),
        fleet,
    ],
)


def app() -> None:
    sys.exit(
        rehearse.rehearse(
            Plan.load("nano-tp1"),
            settings=RouterSettings(),
            question=question or None,
            threads=1,
            logs=folder / "logs",
            started_at=time.time(),
            announce=folder / "announced.json",
            commands=commands,
            check=lambda *arguments, **options: None,
        )
    )


cli.app = app  # type: ignore[assignment]
cli.main()
