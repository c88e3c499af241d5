"""Units of variables, as column names and documents state them."""

ENERGY = "MWh"  # in the hour, which equals the hour's mean power in MW


def unit_of(variable: str) -> str:
    """Return the unit of a variable's values."""
    return ENERGY
