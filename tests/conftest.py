"""What every test has in common; and by being here, this folder is on the import path:
`from zoo import zoo_network`.
"""

import os
import signal
from collections.abc import Iterator

# Workers side by side share the cores out: threads that wait for each other's core spin, and a test
# of seconds takes minutes. Before torch is loaded, which reads this once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in its background deaf to Ctrl-C, commands that tests start inherit that,
# and those that are interrupted would go on to their end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from typechecked import check_types

check_types("edgeclean", "exporters")

# Before any test loads ONNX Runtime: see edgeclean/__init__.py.
import edgeclean  # noqa: E402, F401

pytest_plugins = ["programs", "loopback_sshd"]


@pytest.fixture(autouse=True, scope="session")
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No stage is taken from, or left in, the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
