"""Ray and its ranks as the launcher sees them, at their worst: daemons that leave their parent and ignore SIGTERM."""

import os
import signal
import sys
import time
from multiprocessing import get_context, shared_memory
from pathlib import Path

from r1_serve.launch.fleet import RANKS_UP, RAY_UP

temporary, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "broken":
    sys.exit("error: the ranks of pool main did not start: no memory")


def daemon() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    segment = shared_memory.SharedMemory(create=True, size=4096)
    semaphore = get_context("spawn").Semaphore()
    names = f"{segment.name.strip('/')}\nsem.{semaphore._semlock.name.strip('/')}"  # type: ignore[attr-defined]
    Path(temporary.parent, f"segment-{os.getpid()}").write_text(names, encoding="utf-8")
    time.sleep(600)


if mode != "tame":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            daemon()
        os._exit(0)
    os.wait()
    while not list(temporary.parent.glob("segment-*")):
        time.sleep(0.01)
print(RAY_UP, flush=True)
if mode == "stuck":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
print(RANKS_UP, flush=True)
if mode == "dies":
    while not Path(temporary.parent, "die").exists():
        time.sleep(0.01)
    sys.exit("error: Ray's raylet ended: every rank went with it")
time.sleep(600)
