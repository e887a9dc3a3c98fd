"""Attacks that train a backdoored network, re-implemented from their papers."""
