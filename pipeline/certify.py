"""Certifies anyone's classifier: `python -m pipeline.certify`, which runs `pipeline.jobs.certify`."""

from serving import terminal


def main(arguments=None):
    """See `pipeline.jobs.certify.main`."""
    # Imported only now, so that Ctrl-C meanwhile is answered in one line.
    from pipeline.jobs import certify

    return certify.main(arguments)


if __name__ == "__main__":
    terminal.run(main)
