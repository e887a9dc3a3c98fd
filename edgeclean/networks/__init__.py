"""What networks are made of: states, layers, cost, folding, batching, precision, pixels."""
