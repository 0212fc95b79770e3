"""Read and write files safely: atomic writes, locks and checksums."""
