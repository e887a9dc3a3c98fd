"""What was done and measured, for people and programs."""
