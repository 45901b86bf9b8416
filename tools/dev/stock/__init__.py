"""Compare stock configs with and without AGVM."""
