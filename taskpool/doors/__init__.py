"""What callers hold: pools, clients, futures."""
