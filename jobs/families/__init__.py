"""A run of many small rounds, watched: nothing may grow with the rounds that are done."""
