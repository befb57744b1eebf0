"""Chat alerts: a plugin of the analytics host."""
