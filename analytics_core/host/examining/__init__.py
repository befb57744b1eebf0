"""What is told about plugins, and found out by trying them in a process of their own."""
