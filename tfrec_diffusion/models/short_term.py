"""The short-term part of the models that search in the long-term history."""

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.search import Newest
from tfrec_diffusion.layers.target_attention import TargetAttention, TargetQuery


class ShortTerm:
    """Multi-head target attention over the newest behaviors.

    Args:
        length: How many.
        num_heads: Heads.
        dtype: Dtype policy.
        name: Of the model; the layers' names begin with it.
    """

    def __init__(self, length, num_heads, dtype, name):
        check_positive_integers(short_length=length)
        self.newest = Newest(length, name=f"{name}.newest")
        self.query = TargetQuery(num_heads, dtype=dtype, name=f"{name}.short_term_query")
        self.attention = TargetAttention(dtype=dtype, name=f"{name}.short_term_attention")

    def __call__(self, request):
        """(batch, candidates, d), of a `Request`."""
        newest = request.at(*self.newest(request.history_mask))
        return self.attention(self.query(request.target), newest.history, newest.history_mask)
