"""Training with Lightning: configuration, text, run folders, exact resume. Needs the extra `train`."""
