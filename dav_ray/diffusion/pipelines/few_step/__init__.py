"""Consistency models, which draw in one to eight steps, one pipeline a file."""
