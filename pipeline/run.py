"""The whole job, from images to a pushed model: `python -m pipeline.run`, which runs `pipeline.jobs.run`."""

from serving import terminal

if __name__ == "__main__":
    terminal.run_main_of("pipeline.jobs.run")
