"""How checkpoints are ranked. The rest of this module is upstream's."""

from speechbrain.utils.checkpoints import ckpt_recency  # upstream's own


def _is_nan(value):
    """Tell whether a key by which checkpoints are ranked is nan, or a tuple that holds one."""
    return any(map(_is_nan, value)) if isinstance(value, (tuple, list)) else bool(value != value)


class Checkpointer:
    """Upstream's class with one method replaced."""

    def find_checkpoints(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
        max_num_checkpoints=None,
    ):
        """Rank the checkpoints, best first.

        Upstream's sorted by keys that may be nan, which compares with nothing,
        so the order was arbitrary and a nan could come out best. Here nan ranks
        last, whichever way the key counts.

        Arguments
        ---------
        importance_key : callable
            Gives a value for a Checkpoint; the highest is the best. By default
            the time of saving.
        max_key, min_key : str
            A key of the meta, of which the highest or lowest value is the best;
            checkpoints without it are left out.
        ckpt_predicate : callable
            Says of a Checkpoint whether to consider it.
        max_num_checkpoints : int
            How many to return at most; all by default.

        Returns
        -------
        list of Checkpoint
            Of equal ones the newest first.

        Raises
        ------
        ValueError
            If ``importance_key`` is given together with another key.

        Example
        -------
        >>> checkpointer = Checkpointer(getfixture("tmpdir"))
        >>> for loss in (2.0, float("nan"), 1.0):
        ...     _ = checkpointer.save_checkpoint(meta={"loss": loss})
        >>> [checkpoint.meta["loss"] for checkpoint in checkpointer.find_checkpoints(min_key="loss")]
        [1.0, 2.0, nan]
        """
        if importance_key and (max_key or min_key):
            raise ValueError("Must specify only one of 'importance_key', 'max_key', and 'min_key'.")
        key = max_key or min_key

        def rank(checkpoint):
            if key:
                value = checkpoint.meta[key] if max_key else -checkpoint.meta[key]
            else:
                value = (importance_key or ckpt_recency)(checkpoint)
            return (False,) if _is_nan(value) else (True, value)

        found = [c for c in self.list_checkpoints() if not key or key in c.meta]
        found = sorted(filter(ckpt_predicate, found), key=ckpt_recency, reverse=True)
        return sorted(found, key=rank, reverse=True)[:max_num_checkpoints]
