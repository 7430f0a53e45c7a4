"""What the commands share: arguments, what they print, how they end."""
