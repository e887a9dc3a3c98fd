"""Backdoors: the scan that searches for triggers, and the purification that unlearns them."""
