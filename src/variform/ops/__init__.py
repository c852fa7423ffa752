"""Pure functions on tensors: masks, attention and its backends, score modifiers, rotary tables, linear attention.

Nothing here knows a part or a spec; the only imports are torch, the standard library and `variform.errors`.
"""
