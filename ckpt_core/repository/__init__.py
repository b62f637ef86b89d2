"""The repository: chunks to packs to manifests in a store; references and metric segments beside them."""

from ckpt_core.repository.checking import check_options
from ckpt_core.repository.experiments import ExperimentRecords, last_words
from ckpt_core.repository.leases import Claims, HeldLease, Leases
from ckpt_core.repository.reader import ChunkReader, Verify, open_pack, read_forward
from ckpt_core.repository.references import References
from ckpt_core.repository.repository import Committed, Draft, Repository
from ckpt_core.repository.series import MetricSegments
from ckpt_core.repository.signatures import Signatures
from ckpt_core.repository.spare import Spare
from ckpt_core.repository.standing import refuse_if_gone
from ckpt_core.repository.trash import GRACE_SECONDS

__all__ = [
    "GRACE_SECONDS",
    "ChunkReader",
    "Claims",
    "Committed",
    "Draft",
    "ExperimentRecords",
    "HeldLease",
    "Leases",
    "MetricSegments",
    "References",
    "Repository",
    "Signatures",
    "Spare",
    "Verify",
    "check_options",
    "last_words",
    "open_pack",
    "read_forward",
    "refuse_if_gone",
]
