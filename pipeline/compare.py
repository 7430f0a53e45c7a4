"""Puts certification logs side by side: `python -m pipeline.compare`, which runs `pipeline.jobs.compare`."""

from serving import terminal

if __name__ == "__main__":
    terminal.run_main_of("pipeline.jobs.compare")
