"""Shopping carts, as they were before they had values and could be abandoned."""
