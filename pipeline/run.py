"""The whole job, from images to a pushed model: `python -m pipeline.run`, which runs `pipeline.jobs.run`."""

from serving import terminal


def main(arguments=None):
    """See `pipeline.jobs.run.main`."""
    # Imported only now, so that Ctrl-C meanwhile is answered in one line.
    from pipeline.jobs import run

    return run.main(arguments)


if __name__ == "__main__":
    terminal.run(main)
