"""Hydra configuration: one primary config per pipeline, and the groups that they draw from."""
