"""Kills a process before a chosen call that it makes to the operating system or to a file."""

import io
import os
import signal
import sys


class Ended(BaseException):
    """A process' end, with its status, in a test that goes on."""


def leave(status):
    """In place of os._exit, in a test that goes on."""
    raise Ended(status)


_SYSTEM = {"posix", "fcntl", "_io", "io"}


def calls_of(action, killed_before=None):
    """Carries out an action in a process of its own. Returns how many calls it made; None if it was killed before one.

    Calls are those to the operating system and to files, from its main thread.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = 0

        def before_call(frame, event, function):
            nonlocal count
            if event != "c_call":
                return
            method_of_file = isinstance(getattr(function, "__self__", None), io.IOBase)
            if function.__module__ in _SYSTEM or method_of_file:
                if count == killed_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.setprofile(before_call)
        action()
        sys.setprofile(None)
        os.write(writer, str(count).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        count = file.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0
    return int(count)
