"""A dataset knows the file that it is from."""

import traceback

from speechbrain.utils.data_pipeline import add_note


class DynamicItemDataset:
    @classmethod
    def from_json(cls, json_path, *args, **kwargs):
        return _from_file(cls._upstream_from_json, json_path, *args, **kwargs)

    @classmethod
    def from_csv(cls, csv_path, *args, **kwargs):
        return _from_file(cls._upstream_from_csv, csv_path, *args, **kwargs)


def _from_file(load, path, *args, **kwargs):
    """Makes a dataset from a file, which its exceptions then name."""
    try:
        dataset = load(path, *args, **kwargs)
    except IndexError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not getattr(frame.f_locals.get("self"), "data", True):
            add_note(error, f"{path} has no items.")
        raise
    dataset.pipeline.source = path
    return dataset
