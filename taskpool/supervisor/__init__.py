"""The process that owns store, schedule and workers."""
