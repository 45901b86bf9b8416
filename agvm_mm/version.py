"""The version, in one place: ``setup.py`` reads this line without importing."""

__version__ = '0.1.0'
