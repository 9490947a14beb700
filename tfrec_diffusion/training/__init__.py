"""Training runs: what they do, where they do it, and what they leave."""
