"""Certifies anyone's classifier: `python -m pipeline.certify`, which is `pipeline.jobs.certify`."""

from pipeline.jobs.certify import main
from serving import terminal

if __name__ == "__main__":
    terminal.run(main)
