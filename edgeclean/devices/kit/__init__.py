"""What goes to a device beside the network: one file of plain Python, and a shell script."""
