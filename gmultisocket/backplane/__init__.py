"""The backplane: a publication reaches the subscribers of every worker process, on every host.

:class:`~gmultisocket.backplane.plane.Backplane` is what programs use. Its engines carry the publications between
processes: ``memory``, ``hub``, and others; their contract is in :mod:`~gmultisocket.backplane.engine`.
"""
