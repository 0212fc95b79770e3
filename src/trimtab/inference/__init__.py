"""Use a tuned adapter: load, predict, evaluate, export, and what a prediction costs."""
