"""The project's own programs, run from its root; none of them is in the package."""
