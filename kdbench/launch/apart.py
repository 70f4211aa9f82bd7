"""A function in a process of its own: the memory that it takes goes with it, and the caller stays small."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.launch.life import tie


def apart(what: str, action: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `action` does, which like the arguments has to be picklable. The process ends with this one.

    Raises KdbenchError and OSError as `action` does, RuntimeError with the traceback of anything else that it
    raises, and KdbenchError with `what` in front where the process ended without an answer.
    """
    return apart_each(what, action, [arguments])[0]


def apart_each(what: str, action: Callable[..., Any], shares: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return what `action` does with each of several tuples of arguments, at once, see :func:`apart`."""
    others: list[_Other] = []
    try:
        with _no_interrupt():
            for arguments in shares:
                others.append(_Other(what, action, arguments))
        return [other.answer() for other in others]
    finally:
        # also after Ctrl-C
        for other in others:
            other.end()


class _Other:
    """Another process, at work on a function."""

    def __init__(self, what: str, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._what = what
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe(duplex=False)
        end, self._life = context.Pipe(duplex=False)
        # at the end of Python nobody waits for it
        self._process = context.Process(target=_answer, args=(theirs, end, action, arguments), daemon=True)
        self._process.start()
        theirs.close()
        end.close()

    def answer(self) -> Any:
        """Return what the function did, or raise what it raised."""
        try:
            done, value = self._ours.recv()
        except EOFError:
            self._process.join()
            how = _how(self._process.exitcode)
            raise KdbenchError(f"{self._what}: its process ended without an answer ({how})") from None
        if not done:
            raise value
        return value

    def end(self) -> None:
        """End the process, whatever it does."""
        self._life.close()
        self._process.kill()
        self._process.join()
        self._ours.close()


def _answer(connection: Any, end: Any, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Entry of the process."""
    os.setsid()  # Ctrl-C is for the parent
    tie(end)
    answer: tuple[bool, Any]
    try:
        answer = True, action(*arguments)
    except (KdbenchError, OSError) as error:
        answer = False, error
    except Exception as error:  # which may be of a kind that cannot be sent
        answer = False, RuntimeError("".join(traceback.format_exception(error)))
    connection.send(answer)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{hint}"
    return f"code {code}"


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back; a process that is started meanwhile never gets it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
