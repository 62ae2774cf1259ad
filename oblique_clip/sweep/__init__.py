"""Questions asked of many runs: which runs they need, the queue that trains them, and what the runs answer."""
