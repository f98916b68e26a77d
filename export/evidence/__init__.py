"""What is published about this project: benchmarks, cross-checks, success rates, tables."""
