"""A checkpoint whose key is nan ranks last."""

from speechbrain.utils.checkpoints import ckpt_recency


def _is_nan(value):
    """Whether a ranking key is nan, or a tuple or list that contains nan."""
    if isinstance(value, (tuple, list)):
        return any(map(_is_nan, value))
    return bool(value != value)


class Checkpointer:
    def find_checkpoints(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
        max_num_checkpoints=None,
    ):
        if importance_key and (max_key or min_key):
            raise ValueError(
                "Must specify only one of 'importance_key', 'max_key', "
                "and 'min_key'."
            )
        key = max_key or min_key

        def rank(ckpt):
            """Ranks nan last, since no number is larger or smaller."""
            if key:
                value = ckpt.meta[key] if max_key else -ckpt.meta[key]
            else:
                value = (importance_key or ckpt_recency)(ckpt)
            return (False,) if _is_nan(value) else (True, value)

        ckpts = [c for c in self.list_checkpoints() if not key or key in c.meta]
        ckpts = list(filter(ckpt_predicate, ckpts))
        # First sort by recency, so that of equal keys the newest comes first
        ckpts = sorted(ckpts, key=ckpt_recency, reverse=True)
        return sorted(ckpts, key=rank, reverse=True)[:max_num_checkpoints]
