"""Where a run is stored: locations, the journal in them, and who may write it."""
