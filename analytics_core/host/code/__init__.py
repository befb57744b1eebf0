"""One generation of a plugin's code: its snapshot, its checks, the calling of its hooks."""
