"""What every room of the pipeline stands on."""
