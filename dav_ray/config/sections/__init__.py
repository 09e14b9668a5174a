"""The sections of the configuration that stand beside no mathematics of their own. No torch."""
