"""The whole job, from images to a pushed model: `python -m pipeline.run`, which is `pipeline.jobs.run`."""

from pipeline.jobs.run import main
from serving import terminal

if __name__ == "__main__":
    terminal.run(main)
