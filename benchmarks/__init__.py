"""The library side by side with others on the same work in the same run: ``python3 -m benchmarks``.

Each work has a file (``oneway.py``, ``roundtrip.py``, ...), which holds its rows of the table, the part that conducts
a run and the parts that run in processes of their own. ``contestants/`` has one adapter a library, ``harness.py``
starts processes and measures, ``report.py`` writes tables, ``drain.py`` is the receiving side of every fan-out.
Nothing here is imported by the library or needed by its tests. README.rst says what each row measures.
"""
