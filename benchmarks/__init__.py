"""Measured claims: `python -m benchmarks NAME [--full]`, `python -m benchmarks short`, `python -m benchmarks all`."""
