"""Whatever is killed, whenever: the same command ends in the same bytes."""
