"""Programs that are not ours end with the process that started them, and starting them does not fork it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from eval import dying

STARTED = """
import subprocess, sys, time
from eval import dying
child = subprocess.Popen(dying.command(sys.executable, "-c", "import time; time.sleep(60)"), cwd=dying.ROOT)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_command_runs_as_it_would_by_itself():
    """Its arguments, its output and its exit status."""
    words = (sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "--flag")
    done = subprocess.run(dying.command(*words), cwd=dying.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "['a b', '--flag']\n")


# Elsewhere `with_parent` does nothing, since there is no prctl: an orphan would end by itself, after a minute.
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is a wish that only Linux's kernel grants")
def test_a_command_ends_with_its_parent():
    """Planted: a parent that is killed, and has no time to end anybody."""
    with subprocess.Popen([sys.executable, "-c", STARTED], cwd=dying.ROOT, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        while child.cmdline()[1:2] != ["-c"]:  # until it has become the command
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    assert not psutil.wait_procs([child], timeout=10)[1]


def test_nothing_is_forked():
    """JAX, which LiteRT's exporter loads, warns of every fork of a process with its threads."""
    forks = []
    os.register_at_fork(before=lambda: forks.append("fork"))
    subprocess.run(dying.command(sys.executable, "-c", "pass"), cwd=dying.ROOT, check=True)
    assert forks == []
