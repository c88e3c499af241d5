"""Units of variables, as column names and documents state them."""

ENERGY = "MWh"  # in the hour, which equals the hour's mean power in MW
PRICE = "USD/MWh"


def unit_of(variable: str) -> str:
    """Return the unit of a variable's values: prices of OASIS are in `PRC_…`."""
    return PRICE if variable.startswith("PRC_") else ENERGY
