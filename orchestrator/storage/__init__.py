"""Where a run is kept: places, the journal in them, and who may write it."""
