"""Certifies anyone's classifier: `python -m pipeline.certify`, which runs `pipeline.jobs.certify`."""

from serving import terminal

if __name__ == "__main__":
    terminal.run_main_of("pipeline.jobs.certify")
