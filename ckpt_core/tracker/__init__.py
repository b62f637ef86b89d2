"""Experiments as their users ask about them, and metric values on their way to the store."""
