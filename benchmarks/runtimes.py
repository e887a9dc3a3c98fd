"""``python -m benchmarks.runtimes``: see `benchmarks.studies.runtimes`."""

from benchmarks.studies.runtimes import main

if __name__ == "__main__":
    main()
