"""A process that hangs, even inside C code, ends itself; one that works goes on."""

import subprocess
import sys

HANGS = """
import ctypes
from cluster.watchdog import Watchdog

with Watchdog(0.5).watching():
    ctypes.PyDLL(None).sleep(100)  # it does not give other Python threads a turn
"""
WORKS = """
import time
from cluster.watchdog import Watchdog

watchdog = Watchdog(1)
with watchdog.watching():
    time.sleep(0.7)
    with watchdog.watching():
        pass
with watchdog.watching():
    time.sleep(0.7)
time.sleep(1.2)
print("done")
"""
FIRST_HANGS = """
import threading, time
from cluster.watchdog import Watchdog

watchdog = Watchdog(1)
def hang():
    with watchdog.watching():
        time.sleep(100)
threading.Thread(target=hang, daemon=True).start()
while True:
    with watchdog.watching():
        time.sleep(0.01)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_work_that_hangs_in_c_ends_the_process() -> None:
    ended = run(HANGS)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert 'File "<string>", line 6' in ended.stderr


def test_work_of_another_thread_does_not_hide_it() -> None:
    ended = run(FIRST_HANGS)
    assert ended.returncode == 1
    assert "in hang" in ended.stderr


def test_work_that_ends_in_time_goes_on() -> None:
    ended = run(WORKS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
