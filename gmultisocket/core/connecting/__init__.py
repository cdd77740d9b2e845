"""Connecting: from an address to a pipe, and what the socket knows of its pipes."""
