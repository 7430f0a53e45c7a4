"""Puts certification logs side by side: `python -m pipeline.compare`, which is `pipeline.jobs.compare`."""

from pipeline.jobs.compare import main
from serving import terminal

if __name__ == "__main__":
    terminal.run(main)
