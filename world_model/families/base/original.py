"""Asks an original project about an export: a script of ours, run by that project's interpreter, answers in arrays."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SIDE = Path(__file__).parents[2] / "original_side.py"  # what it runs in
INSTRUCTION = "Pick up the cup"  # instruction of the requests
UNMATCHED = ("missing", "unexpected")  # arrays of an answer: tensors that the original missed, or had no place for


def ask(script: str, python: str, checkout: Path, inputs: Mapping[str, np.ndarray], *arguments: str
        ) -> dict[str, np.ndarray]:
    """What `python script CHECKOUT ARGUMENTS... WORK` writes to WORK/found.npz; WORK/inputs.npz holds the inputs.

    Raises ValueError where it ends with an error; its last words are told.
    """
    with tempfile.TemporaryDirectory() as work:
        np.savez(f"{work}/inputs.npz", **inputs)
        # -P: modules beside the script are not the ones that it means
        ended = subprocess.run([python, "-P", str(SIDE), script, str(Path(checkout).resolve()), *arguments,
                                work], capture_output=True, text=True)
        if ended.returncode:
            last = [line for line in ended.stderr.splitlines() if line.strip()] or ["no word"]
            raise ValueError(f"the original in {checkout} ended with {ended.returncode}: "
                             f"{last[-1].strip().removeprefix('[rank0]: ')}")
        with np.load(f"{work}/found.npz") as file:
            return {name: file[name] for name in file.files}


def unmatched(found: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """`OriginalRun.unmatched` of an answer."""
    return {name: found[name].tolist() for name in UNMATCHED if len(found[name])}


def prompts(ours: str, found: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """A sentence where the original asked with another prompt than ours; found: with request0/texts/0 and on, the
    prompt and what guidance leads away from."""
    texts = (str(x[0]) for name, x in found.items() if name.startswith("request0/texts/"))
    asked = next(text for text in texts if INSTRUCTION.lower() in text.lower())
    return () if asked == ours else (f"it asks {asked!r}, we ask {ours!r}",)
