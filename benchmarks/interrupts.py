"""Imported first by each benchmark, as imports take seconds: Ctrl-C is answered in one line, without a traceback."""

import sys


def _report(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
