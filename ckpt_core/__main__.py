"""`python -m ckpt_core` is the command `ckpt`."""

from __future__ import annotations

from ckpt_core.cli import main

if __name__ == "__main__":
    main()
