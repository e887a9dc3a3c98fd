"""Files: bounded reading, whole writing, and text that is safe to show."""
