"""The REST API over one store (`ckpt serve`): who may ask, what is answered, and how others add to it.

FastAPI is imported only where an app is made. What is asked is done on the floors below.
"""

from __future__ import annotations

from ckpt_core.web.base import BaseAPI

__all__ = ["BaseAPI"]
