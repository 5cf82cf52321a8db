"""A measured fleet ends with whoever measures it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

STAND_IN = """
import json, signal, sys
from pathlib import Path

signal.alarm(60)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
Path(sys.argv[sys.argv.index("--announce") + 1]).write_text(json.dumps({"http_port": 1, "grpc_port": 2}))
signal.pause()
"""
HOLDER = """
import signal, sys
from pathlib import Path
from r1_bench.fleet import fleet

with fleet("nano-tp1", Path(sys.argv[1])) as running:
    print(running.pid, flush=True)
    signal.pause()
"""


def test_a_fleet_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "r1_serve").mkdir()
    (tmp_path / "r1_serve" / "__init__.py").touch()
    (tmp_path / "r1_serve" / "cli.py").write_text(STAND_IN)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        ended = os.pidfd_open(int(holder.stdout.readline()))
        assert not select.select([ended], [], [], 0)[0]
        holder.send_signal(signal.SIGKILL)
        assert select.select([ended], [], [], 20)[0]
        os.close(ended)
