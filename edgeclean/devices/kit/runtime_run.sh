#!/bin/sh
# Checks the bundle, runs its golden images in the runtime that is installed here, measures original
# and compressed in turns, and writes result.json. `sh kit/run.sh --help` lists the options. Nothing
# is installed. PYTHON names the Python that has the runtime: PYTHON=env/bin/python sh kit/run.sh
# -I: no file beside the program, and no variable, says what `import` finds; -B: no file is left.
exec "${PYTHON:-python3}" -I -B "$(dirname "$0")/edgeclean_device.py" "$@"
