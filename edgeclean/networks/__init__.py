"""Networks and their parts: states, layers, cost, folding, batching, precision, pixels."""
