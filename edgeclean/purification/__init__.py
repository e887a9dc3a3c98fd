"""Remove what the scan suspects."""
