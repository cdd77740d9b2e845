"""The Socket and what it is made of: connector, sender, receiver, pipes. Users import it from ``gmultisocket``."""
