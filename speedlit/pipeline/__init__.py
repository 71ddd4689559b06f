"""The loop: what a stage is, the fifteen stages, and how a run is resumed."""
