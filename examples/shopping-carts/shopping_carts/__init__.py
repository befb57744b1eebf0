"""Shopping carts: a plugin of the analytics host."""
