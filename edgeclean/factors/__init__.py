"""Tucker-2 factors of convolutions: made, scaled, fitted."""
