"""Load an untrusted file as a network, without executing anything of it."""
