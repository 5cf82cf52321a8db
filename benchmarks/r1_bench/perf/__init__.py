"""Fitting the performance model: operators on kernel tables, engines on end-to-end runs, and comparison with peers."""
