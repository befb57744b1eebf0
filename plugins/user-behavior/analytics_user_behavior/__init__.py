"""Sessions, engagement and funnels for the analytics host."""
