"""Exceptions in a data pipeline name the item, the key and the file."""

import logging
import traceback

from speechbrain.utils.data_pipeline import DynamicItem


class DataPipeline:
    # The file that the data is from, if it is from one
    source = None

    def _compute(self, data, order, output_mapping):
        try:
            return self._upstream__compute(data, order, output_mapping)
        except Exception as error:
            add_note(error, self._describe_failure(error, data))
            raise

    def get_selected_node_ids(self, selected_keys):
        try:
            return self._upstream_get_selected_node_ids(selected_keys)
        except KeyError as error:
            note = (
                f"{error} is not a key of the first item{self._of_source()}, "
                "and no dynamic item provides it. The keys that there are: "
            )
            add_note(error, f"{note}{_listed(self.key_to_node)}.")
            raise

    def _of_source(self):
        return f" of {self.source}" if self.source else ""

    def _describe_failure(self, error, data):
        """Names the item, and the key that was being computed."""
        item = f"item {data['id']!r}" if "id" in data else "an item"
        item += self._of_source()
        # After this method's caller: the pipeline, and what it has called
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        pipeline, called = [*(f.f_locals for f in frames[1:3]), {}, {}][:2]
        dynamic = pipeline.get("item")
        in_dynamic_item = isinstance(called.get("self"), DynamicItem)
        is_missing = isinstance(error, KeyError) and not in_dynamic_item
        # In the loop of dynamic_item, all keys have been computed
        if (
            not isinstance(dynamic, DynamicItem)
            or "dynamic_item" in pipeline
            or is_missing
        ):
            keys = [*data, *pipeline.get("intermediate", self.key_to_node)]
            return f"This is {item}, with the keys {_listed(keys)}."
        return (
            f"This happened while computing {_listed(pipeline['provided_keys'])}"
            f" from {_listed(dynamic.takes) or 'nothing'}, for {item}."
        )


def add_note(error, note):
    """Adds a note to an exception. Python 3.10 has no notes: it is logged.

    Arguments
    ---------
    error : Exception
        The exception.
    note : str
        The note, which is printed below the exception's own text.

    Example
    -------
    >>> try:
    ...     raise ValueError("bad")
    ... except ValueError as error:
    ...     add_note(error, "in item 3")
    ...     getattr(error, "__notes__", ["in item 3"])
    ['in item 3']
    """
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        logging.getLogger(__name__).error(f"{type(error).__name__}: {note}")


def _listed(keys):
    return ", ".join(dict.fromkeys(map(str, keys)))
