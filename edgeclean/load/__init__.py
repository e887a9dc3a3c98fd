"""From a file that nobody vouches for to a network, with nothing of it executed."""
