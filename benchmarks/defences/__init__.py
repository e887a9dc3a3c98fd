"""Defences and plain compressors for comparison, re-implemented from their papers.

Each takes a network (and the clean images that its paper allows it) and returns a new one.
"""
