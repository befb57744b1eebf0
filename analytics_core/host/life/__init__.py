"""A plugin's life: attempts, failures, and one generation after the other."""
