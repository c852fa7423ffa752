"""The library's parts inside models of other libraries; each is imported when one of its models comes along."""

from variform.interop import timm, transformers

__all__ = ["timm", "transformers"]
