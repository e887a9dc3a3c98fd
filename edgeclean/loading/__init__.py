"""What strangers wrote, read without running any of it."""
