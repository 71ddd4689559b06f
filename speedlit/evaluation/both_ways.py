"""Travels with the adapter of a decoder that attends in both directions: no config of an adapter can tell its base to.

sentence-transformers reads this file with ``trust_remote_code=True``.
"""

from sentence_transformers.models import Transformer


class BothWays(Transformer):  # type: ignore[misc]
    """A network that gets the switch with each batch."""

    def forward(self, features, **kwargs):  # type: ignore[no-untyped-def]
        """Token states, as the adapter was trained to make them."""
        return super().forward(features, **{**kwargs, "is_causal": False})
