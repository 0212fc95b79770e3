"""Comparisons and studies of the methods on the real sets of ``../shared/data``.

``methods.py`` runs them, ``tables.py`` turns what was measured into tables and pictures, ``studies.py`` is the data
that says what is run.
"""
