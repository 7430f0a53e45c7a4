"""How results are told, on the terminal and on every page."""

import decimal
import math

HEADER = "Certified accuracy at l2 radius, and average certified radius (ACR ± standard error)"


def mean(value, standard_error, digits=4, sign=""):
    """A mean and its standard error, with so many digits; `sign` is "+" for a difference.

    One value has no standard error.
    """
    if math.isnan(standard_error):
        return f"{value:{sign}.{digits}f}"
    return f"{value:{sign}.{digits}f} ± {standard_error:.{digits}f}"


def at_least(value, digits):
    """A lower bound, such as a radius, with so many digits, rounded down: what it says is certified."""
    return str(decimal.Decimal(float(value)).quantize(decimal.Decimal(10) ** -digits, decimal.ROUND_FLOOR))
