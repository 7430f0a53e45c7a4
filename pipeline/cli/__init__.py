"""What the commands share: arguments, what they print."""
