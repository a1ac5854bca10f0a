"""A durable multiprocess task pool."""
