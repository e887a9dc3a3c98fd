"""Measure networks on this machine: their latency, and their accuracy on labelled images."""
