"""The commands that an installation puts on the path: `macer-run` is `python -m pipeline.run`, and so on."""

from serving import terminal


def run():
    """The whole job."""
    terminal.run_main_of("pipeline.run")


def certify():
    """Certifies anyone's classifier."""
    terminal.run_main_of("pipeline.certify")


def runs():
    """Lists the runs of a pipeline root."""
    terminal.run_main_of("pipeline.runs")


def compare():
    """Puts certification logs side by side."""
    terminal.run_main_of("pipeline.compare")


def publish():
    """Publishes, lists and rolls back versions."""
    terminal.run_main_of("serving.publish")
