"""Version of the package; ``setup.py`` parses this file without importing it."""

__version__ = '0.1.0'
