"""What the rest of the pipeline is built on."""
