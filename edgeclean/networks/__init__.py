"""What a network is made of: its layers as one forward pass shows them, their shapes and cost."""
