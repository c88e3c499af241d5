"""CAISO OASIS `SingleZip`."""
