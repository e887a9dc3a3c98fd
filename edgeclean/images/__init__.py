"""Images: synthetic ones from a network alone, and labelled ones of the user."""
