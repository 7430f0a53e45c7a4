"""What can be set, and the paper's experiments as data."""
