"""Attacks that train backdoored networks, re-implemented from their papers."""
