"""Studies that measure edgeclean beside published attacks and defences; not shipped in the wheel.

Run from the repository's root: ``python -m benchmarks.NAME``. See ``benchmarks/README.md``.
"""
