import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter; it must be chosen before anything imports Triton.
    os.environ["TRITON_INTERPRET"] = "1"

# A shell has jobs in the background ignore Ctrl-C; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _clean():
    """Each test starts from the same random state and leaves no file in the checkout."""
    before = set(ROOT.iterdir()) | set((ROOT / "tests").iterdir())
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global state that libraries may read)
    random.seed(0)
    yield
    torch.set_flush_denormal(False)  # as a run that was cut short left it
    left = set(ROOT.iterdir()) | set((ROOT / "tests").iterdir())
    left = {path for path in left - before if not path.name.startswith((".", "__pycache__"))}
    assert not left, f"the test left {sorted(map(str, left))}"


@pytest.fixture(autouse=True, scope="session")
def _nothing_compiled(tmp_path_factory):
    """Kernels that the user has compiled are not what is tested, in no process that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
