"""What a Pretrainer makes of a label encoder without labels. The rest of this module is upstream's."""

import pathlib


class Pretrainer:
    """Upstream's class with one method replaced."""

    def load_collected(self):
        """Load the files that were collected.

        Upstream's passed over a label encoder whose file is absent, and the first
        prediction died of ``KeyError: 3``; of an empty file it died at once, of
        ``KeyError: 'starting_index'``.

        Raises
        ------
        ValueError
            If a label encoder that is among the loadables is given no labels.
        """
        # Known by its attribute: to import the encoder's module here would be a circle.
        encoders = {name: it for name, it in self.loadables.items() if hasattr(it, "lab2ind") and self.is_loadable(name)}
        files = {name: pathlib.Path(self.paths[name]) for name in encoders if name in self.is_local}
        without = [name for name, file in files.items() if not file.is_file() or not file.stat().st_size]
        if not without:
            self._upstream_load_collected()
            without = [name for name, encoder in encoders.items() if not encoder.lab2ind]
        for name in without:
            raise ValueError(
                f"The label encoder {name} has no labels: {files.get(name, name)} is absent or empty. Restore it, or take the "
                "encoder out of the pretrainer's loadables."
            )
