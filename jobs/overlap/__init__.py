"""What overlap of search and training gains, simulated and real."""
