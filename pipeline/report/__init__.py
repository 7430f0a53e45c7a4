"""The report: what a person looks at."""
