"""What lasts of a run: `manifest`, `shards`, `policy`, `records` (events and metrics), `marker` of a shared folder."""
