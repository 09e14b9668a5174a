"""Rectified flows, one pipeline a file."""
