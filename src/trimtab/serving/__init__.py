"""Serving: many tasks on one backbone."""
