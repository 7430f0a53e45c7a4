"""Training: models, batches, schedules, and what is kept, drawn and watched meanwhile."""
