"""The components of the pipeline, one file each."""
