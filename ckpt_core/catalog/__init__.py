"""The SQL index of experiments, checkpoints and metrics. The store alone can rebuild it."""

from ckpt_core.catalog.audit import AuditEntry
from ckpt_core.catalog.facade import Catalog
from ckpt_core.catalog.integrity import IntegrityCheck
from ckpt_core.catalog.rebuild import Rebuild

__all__ = ["AuditEntry", "Catalog", "IntegrityCheck", "Rebuild"]
