"""Imported first by each benchmark, as imports take seconds: Ctrl-C and bad input are answered in one line."""

import sys


def _report(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted.", file=sys.stderr)
        return
    # Only now: what is imported meanwhile would make the process forget that a signal ends it.
    from pipeline.utils.errors import InputError

    if issubclass(kind, InputError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
