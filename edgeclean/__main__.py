"""`python -m edgeclean`: the command line, where a build has a Python and no PATH."""

from edgeclean.cli import main

main()
