"""Measure edgeclean beside published attacks and defences; the wheel does not hold this package.

Run from the repository's root: ``python -m benchmarks.studies.NAME``, ``benchmarks.suite``. See ``benchmarks/README.md``.
"""
