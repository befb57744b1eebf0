"""Where a generation lives: on threads of this process, or in a process of its own."""
