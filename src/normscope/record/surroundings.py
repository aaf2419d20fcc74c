"""Where a run takes place: what a record notes without being told."""

from __future__ import annotations

import os
import platform
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from normscope import __version__


def surroundings() -> dict[str, Any]:
    """Versions, machine and command line, as JSON values."""
    return {
        "normscope": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "argv": list(sys.argv),
        "directory": os.getcwd(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
