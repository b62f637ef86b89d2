"""Alembic's home in the package: `env.py`, and one module for each revision in `versions/`."""
