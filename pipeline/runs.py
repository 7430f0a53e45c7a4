"""Lists the runs of a pipeline root: `python -m pipeline.runs`, which runs `pipeline.jobs.runs`."""

from serving import terminal


def main(arguments=None):
    """See `pipeline.jobs.runs.main`."""
    # Imported only now, so that Ctrl-C meanwhile is answered in one line.
    from pipeline.jobs import runs

    return runs.main(arguments)


if __name__ == "__main__":
    terminal.run(main)
