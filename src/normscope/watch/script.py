"""`run`: an unchanged training script under watch. What it prints, its arguments and its exit code are as without."""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from normscope.terms.errors import RecordError
from normscope.watch.discovery import Discovery
from normscope.watch.session import Every, Watcher

INTERRUPTED = 130  # what a shell reports of a process that an interrupt ended
TERMINATED = 128 + signal.SIGTERM  # and of one that a scheduler, or a container, ended


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM); there is little time left."""


def run(
    script: str | os.PathLike[str],
    args: Sequence[str] = (),
    path: str | os.PathLike[str] = "runs/script",
    *,
    budget: float = 0.01,
    every: Every = "auto",
    afterwards: Callable[[Sequence[Watcher], bool], object] | None = None,
) -> int:
    """Run `script` as ``python script args…`` would, with every training in it watched; its exit code.

    An exception that the script does not catch is printed as Python prints it, without a frame of ours, and is kept in
    the record; so is an interrupt, and SIGTERM where the script does not handle it: that one ends as `sys.exit` does,
    and the second time at once.

    Args:
        script: the file to run.
        args: its arguments.
        path: the run directory; several models have a folder each below it (see `Discovery`).
        budget: the share of the run's time that watching may take.
        every: when to sample, as in `watch`.
        afterwards: called with what was watched when the script has ended, crashed or been interrupted, and its own
            last words are out, and with whether there is little time; the records are complete, and what it raises
            reaches nobody.

    Raises:
        RecordError: `path` is a file.
    """
    if Path(path).is_file():
        raise RecordError(
            "A record was to be written where a file is.",
            found=f"`{path}` is a file",
            because="a record is a directory, with one file for each process of the run",
            do="give another place with --path",
        )
    try:
        with io.open_code(os.fspath(Path(script).absolute())) as file:
            source = file.read()
    except OSError as error:
        print(f"normscope: can't open file {os.fspath(script)!r}: {error.strerror}", file=sys.stderr)
        return 2
    with _as_main(os.fspath(script), args) as names, Discovery(path, budget=budget, every=every) as discovery:

        def last_words(hurried: bool = False) -> None:
            if afterwards is not None:
                with suppress(Exception, KeyboardInterrupt):
                    afterwards(discovery.watchers, hurried)

        with _before_leaving(lambda: (discovery.close(), last_words())), _terminable():
            error = _outcome(source, os.fspath(script), names)
        ended, hurried = error is None or isinstance(error, SystemExit), isinstance(error, Terminated)
        if error is not None and (hurried or not ended):
            discovery.crashed(error)
    code = _exit_code(getattr(error, "code", None)) if ended else _told(error)
    last_words(hurried)
    return code


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, the first SIGTERM raises `Terminated`, unless somebody handles it; the second ends the process.

    A child that was forked ends as ever: who made it may end it so.
    """
    process, own = os.getpid(), threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != process:
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated(TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _before_leaving(end: Callable[[], object]) -> Iterator[None]:
    """Inside, `os._exit`, which runs nothing that waits for the end of a process, runs `end` first.

    A child that was forked leaves as ever: `multiprocessing` ends its children so.
    """
    leave, process = os._exit, os.getpid()

    def leave_after(status: int) -> NoReturn:
        if os.getpid() == process:
            with suppress(Exception, KeyboardInterrupt):
                end()
        leave(status)

    os._exit = leave_after
    try:
        yield
    finally:
        os._exit = leave


def _told(error: BaseException | None) -> int:
    """Print what the script did not catch as Python prints it; the exit code."""
    sys.stdout.flush()
    if error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


@contextmanager
def _as_main(script: str, args: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Inside, the process looks as if Python had been started with `script`; the names of its ``__main__``."""
    main = types.ModuleType("__main__")
    loader = importlib.machinery.SourceFileLoader("__main__", script)
    main.__dict__.update(__file__=script, __builtins__=builtins, __loader__=loader, __spec__=None, __cached__=None)
    kept = sys.modules.get("__main__"), list(sys.argv), list(sys.path)
    sys.modules["__main__"] = main
    sys.argv[:] = [script, *args]
    sys.path[:1] = [str(Path(script).absolute().parent)]
    try:
        yield main.__dict__
    finally:
        sys.argv[:], sys.path[:] = kept[1], kept[2]
        if kept[0] is not None:
            sys.modules["__main__"] = kept[0]


def _outcome(source: bytes, script: str, names: dict[str, Any]) -> BaseException | None:
    """What the script raised, with the traceback from its own first frame on."""
    try:
        exec(compile(source, script, "exec"), names)
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        error.__traceback__ = trace
        return error
    return None


def _exit_code(code: Any) -> int:
    if code is None or isinstance(code, int):
        return int(code or 0)
    print(code, file=sys.stderr)
    return 1
