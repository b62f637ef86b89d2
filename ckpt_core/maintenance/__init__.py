"""Deciding nothing, acting on the store: verify, prune, reindex."""
