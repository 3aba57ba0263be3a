"""Pipelines feed an engine: one photo, many photos, pictures larger than memory, frames of a video."""
