"""What may be set, and the paper's experiments as data."""
