"""The kit that goes to a device beside the network: plain Python 3.6, and a shell script."""
