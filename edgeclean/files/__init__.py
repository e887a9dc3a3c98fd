"""Bytes on the disk: bounded reading, whole writing, text that is safe to show."""
