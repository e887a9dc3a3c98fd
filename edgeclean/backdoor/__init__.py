"""Backdoors: the scan that looks for triggers, and the purification that unlearns them."""
