"""What needs timm is not collected here: test_vision.py runs it in a process of its own."""

import os

collect_ignore = [] if os.environ.get("VARIFORM_VISION") else ["vision"]
