"""A plugin's outputs, rebuilt from history and switched to."""
