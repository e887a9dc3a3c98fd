"""Smaller networks: convolutions factored, clamped, planned for one goal, and truncated."""
