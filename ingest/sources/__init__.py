"""Where hours come from: EIA API v2, CAISO OASIS, EIA bulk files, behind one seam."""
