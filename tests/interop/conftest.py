"""timm needs torchvision, which no CPU build fits: its tests run in a process of their own, see test_vision.py."""

import os

collect_ignore = [] if os.environ.get("VARIFORM_VISION") else ["vision"]
