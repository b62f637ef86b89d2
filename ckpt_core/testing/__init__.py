"""Suites for those who extend the engine: inherit one, say what is to be tested, and pytest runs it. Needs pytest.

```python
from ckpt_core.testing import BackendContract

class TestMine(BackendContract):
    def make_backend(self):
        return MyBackend()
```
"""

from ckpt_core.testing.backends import BackendContract
from ckpt_core.testing.comparing import same_state
from ckpt_core.testing.stores import StoreContract

__all__ = ["BackendContract", "StoreContract", "same_state"]
