"""What is installed, what the operator wants of it, and what changes."""
