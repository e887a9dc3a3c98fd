"""Defences and plain compressors to compare with, re-implemented from their papers.

Each takes a network (and the clean images that its paper allows it) and gives a new one.
"""
