"""A device over the system's OpenSSH: copy a bundle, measure it there, bring the numbers back."""
