"""What the project promises of speed and durability, measured. ``python -m benchmarks --help`` lists the parts."""
