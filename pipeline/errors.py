"""The one exception the pipeline raises for what a user can put right: a name, a path, a value, a file."""


class InputError(ValueError):
    """Bad input, told in one line: what was received, what is accepted, what to do."""
