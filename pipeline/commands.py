"""The commands that an installation puts on the path: `macer-run` is `python -m pipeline.run`, and so on."""

import importlib

from serving import terminal


def run():
    """The whole job."""
    _command("pipeline.run")


def certify():
    """Certifies anyone's classifier."""
    _command("pipeline.certify")


def runs():
    """Lists the runs of a pipeline root."""
    _command("pipeline.runs")


def compare():
    """Puts certification logs side by side."""
    _command("pipeline.compare")


def publish():
    """Publishes, lists and rolls back versions."""
    _command("serving.publish")


def _command(module):
    # Only then, so that Ctrl-C meanwhile is answered in one line.
    terminal.run(lambda: importlib.import_module(module).main())
