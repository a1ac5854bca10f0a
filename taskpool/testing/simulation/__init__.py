"""A seeded simulation of the scheduler in a model world: store, workers, clients and faults are models, time is a number."""
