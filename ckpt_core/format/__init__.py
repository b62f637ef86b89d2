"""Format 1 on disk: sealed JSON documents and packs. Knows bytes, not stores."""
