"""What holds for all tests."""

from hypothesis import settings

# How long an example takes says more about the machine's neighbours than about the code.
settings.register_profile("edgewright", deadline=None)
settings.load_profile("edgewright")
