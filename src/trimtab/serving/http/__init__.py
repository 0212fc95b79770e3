"""The addresses of a server, and what is said at each."""
