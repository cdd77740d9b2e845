"""Pipes: one connected peer each. How a pipe writes, reads and closes, for each kind of connection."""
