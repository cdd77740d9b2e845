"""Benchmarks: this library against others, and two versions of this library against each other.

The commands are ``python3 -m benchmarks`` and ``python3 -m benchmarks.compare``. Each work has a file (``oneway.py``,
``roundtrip.py``, ...) with its rows of the table, the part that conducts a run, and the parts that run in separate
processes. ``contestants/`` has one adapter for each library, ``harness.py`` starts processes and measures,
``report.py`` writes tables, ``paired.py`` has the statistics of a comparison, ``drain.py`` is the receiving side of
every fan-out. The library does not import this package, and its tests do not need it. README.rst explains what each row
measures.
"""
