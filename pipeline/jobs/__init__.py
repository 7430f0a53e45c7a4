"""What each command does; the modules above are its doors, `python -m pipeline.run` and so on."""
