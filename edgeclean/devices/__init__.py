"""Devices: what a target can take, and what runs on the device itself."""
