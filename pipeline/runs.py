"""Lists the runs of a pipeline root: `python -m pipeline.runs`, which runs `pipeline.jobs.runs`."""

from serving import terminal

if __name__ == "__main__":
    terminal.run_main_of("pipeline.jobs.runs")
