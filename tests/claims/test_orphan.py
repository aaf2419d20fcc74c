"""Workers end with the run that started them, also when it is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

PARENT = """
import multiprocessing, time
from normscope.claims.orphan import leave_with_parent

def work(started):
    leave_with_parent()
    started.set()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    child = context.Process(target=work, args=(started,))
    child.start()
    started.wait()
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads Linux's list of processes")
def test_a_worker_ends_with_a_run_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for _ in range(200):
            if not alive(child):
                return
            time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the worker lived on")


def alive(pid):
    """Whether the process runs; one that ended and that nobody has fetched counts as gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as told:
            return told.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
