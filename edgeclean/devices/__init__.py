"""Describe target devices, reach them by ssh, and hold the kit that runs on them."""
