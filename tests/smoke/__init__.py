"""Real processes on real brokers: beats and workers that are stopped, killed and frozen, and brokers likewise."""
