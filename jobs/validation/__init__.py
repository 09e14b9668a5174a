"""Whether the search samples what it claims: problems whose answers are known."""
