"""What a run that was killed left finished, taken up by the next one."""
