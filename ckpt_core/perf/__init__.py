"""Batches, a cache, and what they cost: mechanisms that know nothing of what goes through them."""
