"""`python -m benchmarks.suite`."""

from benchmarks.suite.commands import main

main()
