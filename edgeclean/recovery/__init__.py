"""Accuracy won back after truncation."""
