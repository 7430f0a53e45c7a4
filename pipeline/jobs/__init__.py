"""What each command does; the modules above are the entry points, `python -m pipeline.run` and so on."""
