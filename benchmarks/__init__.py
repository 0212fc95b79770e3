"""What measures speed, and the studies that `trimtab bench` runs."""
