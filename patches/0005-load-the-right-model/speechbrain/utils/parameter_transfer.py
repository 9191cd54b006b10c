"""A label encoder without labels is reported when it is loaded."""

import pathlib


class Pretrainer:
    def load_collected(self):
        # Recognized by an attribute, since importing the encoder's module
        # would be a circular import
        encoders = {
            name: obj
            for name, obj in self.loadables.items()
            if hasattr(obj, "lab2ind") and self.is_loadable(name)
        }
        files = {
            name: pathlib.Path(self.paths[name])
            for name in encoders
            if name in self.is_local
        }
        empty = [
            name
            for name, path in files.items()
            if not path.is_file() or path.stat().st_size == 0
        ]
        if not empty:
            self._upstream_load_collected()
            empty = [name for name, obj in encoders.items() if not obj.lab2ind]
        for name in empty:
            raise ValueError(
                f"The label encoder {name} has no labels: "
                f"{files.get(name, name)} is absent or empty. Restore it, or "
                "remove the encoder from the loadables of the pretrainer."
            )
