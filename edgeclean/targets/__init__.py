"""Devices: what they run, with the source of each fact."""
