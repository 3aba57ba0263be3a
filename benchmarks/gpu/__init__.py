"""What runs on a GPU: `make gpu-check` (check.py and what it calls), and frames.py."""
