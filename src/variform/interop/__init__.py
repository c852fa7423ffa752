"""The library's parts inside models of other libraries; each is imported when one of its models comes along."""

from variform.interop import timm, torch_nn, transformers

__all__ = ["timm", "torch_nn", "transformers"]
