"""The programs that made the models and oracles which ship with the package."""
