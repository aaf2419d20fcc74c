"""A run directory, tensors made of a seed, a directory on a small disk of its own, and children that write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normscope.stats.summary import Summary


@pytest.fixture
def run(tmp_path):
    """A run directory that does not exist yet, with a name that has to be quoted."""
    return tmp_path / "läufe ?#%41" / "run é 1"


@pytest.fixture
def tensor():
    """A tensor of a seed: `tensor(seed, *shape)`."""

    def make(seed, *shape):
        return torch.randn(*(shape or (256,)), generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def summary(tensor):
    """The summary of a tensor of a seed."""
    return lambda seed=0, *shape: Summary.of(tensor(seed, *shape))


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of one megabyte, and a function that mounts it again with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode

    if sys.platform != "linux" or os.geteuid() or mount("-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        pytest.skip("needs the right to mount a small disk")
    yield place, lambda options: mount("-o", f"remount,{options}")
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.fixture
def child():
    """A Python process that runs a script with arguments, its output piped; killed at the end if it still runs."""
    started = []

    def start(script, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, _source()))},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def _source():
    import normscope

    return [Path(normscope.__file__).parents[1]]
