"""A run directory's storage: `uri.open_storage` opens it; `interface` says what `local` and `object_store` do."""
