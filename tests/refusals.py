"""What must not go through, in one line."""

import pytest


def refused(message, call, *arguments, error=ValueError, **options):
    """Asserts that a call fails with an error whose message holds the pattern."""
    with pytest.raises(error, match=message):
        call(*arguments, **options)
