"""Erasure and export of one user: what is kept of them, in every place where something is, and the receipt."""
