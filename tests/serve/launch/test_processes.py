"""Children of a rehearsal: what they are given at birth."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from r1_serve.launch.processes import Family


def test_what_a_rehearsal_starts_gives_way_when_it_wakes_and_so_do_its_own_children(tmp_path: Path) -> None:
    ask = "import os, subprocess, sys; print(os.sched_getscheduler(0), flush=True)"
    code = f"{ask}; subprocess.run([sys.executable, '-c', {ask!r}], check=True)"
    with Family(grace_s=0) as family:
        child = family.spawn("child", [sys.executable, "-c", code], tmp_path / "child.log")
        child.process.wait(30)
    assert child.log.read_text().split() == [str(os.SCHED_BATCH)] * 2
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
