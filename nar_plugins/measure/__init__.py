"""Quality and speed, for recipes and benchmarks."""
