"""Puts certification logs side by side: `python -m pipeline.compare`, which runs `pipeline.jobs.compare`."""

from serving import terminal


def main(arguments=None):
    """See `pipeline.jobs.compare.main`."""
    # Imported only now, so that Ctrl-C meanwhile is answered in one line.
    from pipeline.jobs import compare

    return compare.main(arguments)


if __name__ == "__main__":
    terminal.run(main)
