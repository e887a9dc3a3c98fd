"""The version of edgeclean, where every module can read it without the public face above it."""

__version__ = "0.1.0"
