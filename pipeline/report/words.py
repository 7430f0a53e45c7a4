"""How results are told, on the terminal and on every page."""

import math

HEADER = "Certified accuracy at l2 radius, and average certified radius (ACR ± standard error)"


def mean(value, standard_error, digits=4, sign=""):
    """A mean and its standard error, with so many digits; `sign` is "+" for a difference."""
    return f"{value:{sign}.{digits}f} ± {standard_error:.{digits}f}"


def at_least(value, digits):
    """A lower bound from 0 with so many digits, rounded down as a bound must be."""
    return f"{math.floor(float(f'{value * 10**digits:.9g}')) / 10**digits:.{digits}f}"
