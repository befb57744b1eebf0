"""A simulated shop as traffic, and a live table of what the server makes of it."""
