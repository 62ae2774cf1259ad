"""Speed and memory as ratios against named peers, measured side by side on one machine."""
