"""Receiving: from the pipes to ``recv``."""
