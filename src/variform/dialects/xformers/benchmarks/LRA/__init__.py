"""The Long Range Arena (arXiv:2011.04006) with xFormers' commands."""

import importlib.util

if importlib.util.find_spec("lightning") is None:
    raise ModuleNotFoundError("the Long Range Arena trains with Lightning: pip install 'variform[examples]'")
