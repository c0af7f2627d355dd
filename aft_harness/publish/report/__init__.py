"""A study as one HTML file that people look at. Reads what commands wrote; runs no model."""
