"""The revisions, never changed once released: each says how a catalog of the one before becomes its own."""
