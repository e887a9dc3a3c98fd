"""Images made from a network alone."""
