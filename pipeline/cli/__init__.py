"""What the commands share: arguments, and what they print."""
