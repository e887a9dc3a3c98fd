"""The bundle: what is written, what binds it, and how it is checked again."""
