"""Where trials are evaluated: in this process, in tasks of a Ray cluster, in trials of Ray Tune."""
