"""Many networks, for many targets and goals, on one machine or many."""
