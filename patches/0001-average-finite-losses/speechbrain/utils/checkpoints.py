"""A checkpoint whose key is nan ranks last."""

from speechbrain.utils.checkpoints import ckpt_recency, logger


def _is_nan(value):
    """Whether a ranking key is nan, or a tuple or list that contains nan."""
    if isinstance(value, (tuple, list)):
        return any(map(_is_nan, value))
    return bool(value != value)


class Checkpointer:
    # Set by save_and_keep_only() of patch 0002
    num_to_keep = None

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
        lowest_first = bool(min_key and not max_key)

        def rank(ckpt):
            """Ranks nan last, since no number is larger or smaller."""
            value = (
                ckpt.meta[key]
                if key
                else (importance_key or ckpt_recency)(ckpt)
            )
            if _is_nan(value):
                return (lowest_first,)
            return (not lowest_first, value)

        ckpts = [c for c in self.list_checkpoints() if not key or key in c.meta]
        ckpts = list(filter(ckpt_predicate, ckpts))
        # First sort by recency, so that of equal keys the newest comes first
        ckpts = sorted(ckpts, key=ckpt_recency, reverse=True)
        num_asked = max_num_checkpoints or 0
        if (
            len(ckpts) < num_asked
            and (self.num_to_keep or num_asked) < num_asked
        ):
            logger.warning(
                f"{num_asked} checkpoints are asked for, but "
                f"{self.checkpoints_dir} has {len(ckpts)} of this kind: "
                f"save_and_keep_only() keeps num_to_keep={self.num_to_keep}."
            )
        ckpts = sorted(ckpts, key=rank, reverse=not lowest_first)
        return ckpts[:max_num_checkpoints]
