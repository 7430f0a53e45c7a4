"""Lists the runs of a pipeline root: `python -m pipeline.runs`, which is `pipeline.jobs.runs`."""

from pipeline.jobs.runs import main
from serving import terminal

if __name__ == "__main__":
    terminal.run(main)
