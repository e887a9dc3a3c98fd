"""An exported network in the precision that a device computes in, and how close it stays."""
