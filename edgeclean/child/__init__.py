"""Processes of our own that do one task within limits, and may die without harm."""
