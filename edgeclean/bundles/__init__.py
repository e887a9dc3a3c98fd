"""What a run leaves behind: written whole, and verified."""
