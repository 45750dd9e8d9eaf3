"""Bringing things back: a backup opened for reading, and each source restored beside what exists, then put in place."""
