"""Pretrained, best of N and DAV on the shipped recipes, each under the same budget."""
