"""Times the recipe SpokenWords with and without its cache of embeddings, on 4000 synthetic clips.

> python tests/benchmarks/recipe.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "SpokenWords"
sys.path.insert(0, str(RECIPE))

from compare import WAYS, compare, run, show  # noqa: E402  found through the path above

WORDS = "yes no up down bed bird cat dog happy house marvin sheila tree wow".split()

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        data, pretrained = f"--data_folder={work}/data", f"{work}/pretrained"
        maker = [sys.executable, RECIPE / "make_spoken_words.py", f"{work}/data", *WORDS, "--speakers=100", "--takes=4"]
        subprocess.run(list(map(str, maker)), check=True)
        words = f"--words=[{','.join(WORDS[:4])}]"
        usual = ["--number_of_epochs=3", "--device=cpu", "--noprogressbar"]
        run("pretrain.py", data, f"--output_folder={pretrained}", words, *usual)
        show(compare(list(WAYS)[:2], [data, f"--source={pretrained}/inference"], seeds=1))
