"""Sending: which pipes a message goes to, and what happens when they are full. How a pipe writes is in ``pipes/``."""
