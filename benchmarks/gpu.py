"""``python -m benchmarks.gpu``: see `benchmarks.studies.gpu`."""

from benchmarks.studies.gpu import main

if __name__ == "__main__":
    raise SystemExit(main())
