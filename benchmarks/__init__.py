"""Measure edgeclean beside published attacks and defences; the wheel does not hold this package.

Run it from the repository's root: ``python -m benchmarks.studies.NAME``, or
``python -m benchmarks.suite NAME``; see ``benchmarks/README.md``.
"""
