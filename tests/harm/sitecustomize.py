"""Makes the learners of `poisoned` known to a process started with this folder on PYTHONPATH.

A server makes nothing but what versions consist of, so a version that does harm can only be one that it is taught.
"""

import poisoned  # noqa: F401
