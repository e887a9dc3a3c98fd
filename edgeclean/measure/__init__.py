"""Measurements on this machine: latency, accuracy on labelled images."""
