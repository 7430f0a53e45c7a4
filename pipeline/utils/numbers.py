"""How numbers are written where rounding them would matter."""


def exactly(number):
    """A number with all its digits, such as 0.25; at a radius rounded up, less may be certified."""
    return str(float(number)).removesuffix(".0")
