"""Builds image-text pairs from openly licensed packages: `fetch`, then `build`, then `embed`."""
