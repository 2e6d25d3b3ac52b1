"""What all tests share: how hypothesis plays its examples."""

from hypothesis import settings

# How long an example takes is the machine's affair, which other tests share; bounds have tests of their own.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
