"""How results are worded, on the terminal and on every page."""

import decimal
import math

from pipeline.utils.numbers import exactly

HEADER = "Certified accuracy at l2 radius, and average certified radius (ACR ± standard error)"


def mean(value, standard_error, digits=4, sign=""):
    """A mean and its standard error, with this many digits; `sign` is "+" for a difference.

    One value has no standard error: NaN or None.
    """
    if standard_error is None or math.isnan(standard_error):
        return f"{value:{sign}.{digits}f}"
    return f"{value:{sign}.{digits}f} ± {standard_error:.{digits}f}"


def bound(name, beta):
    """A bound's name; with the inverse temperature of the soft-smoothed classifier that it is about, if there is one.

    Soft certificates at different ones are about different classifiers, as those by different bounds may be.
    """
    return name if beta is None else f"{name} at beta={exactly(beta)}"


def at_least(value, digits):
    """A lower bound, such as a radius, with this many digits, rounded down, so that the number shown is certified."""
    return str(decimal.Decimal(float(value)).quantize(decimal.Decimal(10) ** -digits, decimal.ROUND_FLOOR))
