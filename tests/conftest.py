"""What holds for all tests."""

import sys
from pathlib import Path

from hypothesis import settings

# The benchmarks' fleets and servers are the tests' as well.
if (root := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.insert(0, root)

# How long an example takes says more about the machine's neighbours than about the code.
settings.register_profile("edgewright", deadline=None)
settings.load_profile("edgewright")
