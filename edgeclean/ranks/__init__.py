"""Ranks chosen under a budget, and the network cut to them."""
