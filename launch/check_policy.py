"""Checks properties that any PyTorch policy should have on somebody's model (extra: torch; of Wamax only this folder).

    python -m launch.check_policy MODULE:CALLABLE [--out=DIR]

CALLABLE() returns a launch.policy_check.adapter.Adapter: how the policy is loaded, a batch, its loss, how it samples,
and what in the batch must not matter. docs/check_policy.md shows two. Writes DIR/policy_check.json and
DIR/policy_check.html; exit code 1 where a property does not hold. The policy's own environment needs
nothing more than the policy itself.
"""

import argparse
import dataclasses
import html
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from launch.policy_check.adapter import Adapter, AdapterError
from launch.policy_check.properties import FAILED, NOT_CHECKED, PASSED, PROPERTIES, Finding
from launch.reporting import report_page

MARKS = {PASSED: "met", FAILED: "missed", NOT_CHECKED: "note"}


def check(adapter: Adapter) -> list[Finding]:
    """All findings; a property during which the policy itself fails is one that does not hold.

    Raises AdapterError where the adapter does not keep what it promises.
    """
    torch.manual_seed(0)
    module, findings = adapter.load(), []
    if not isinstance(module, nn.Module):
        raise AdapterError(f"load should return a torch.nn.Module, found {type(module).__name__}")
    for run in PROPERTIES:
        try:
            findings += run(adapter, module)
        except AdapterError:
            raise
        except Exception as error:
            findings.append(Finding(run.__name__, FAILED, f"the policy raised {type(error).__name__}: {error}"))
    return findings


def load_adapter(name: str) -> Adapter:
    """Raises AdapterError where there is none of that name; an import's own error stays as it is."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise AdapterError(f"expected MODULE:CALLABLE, found {name!r}")
    try:
        make: Callable[[], Adapter] | None = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise AdapterError(f"there is no module {error.name!r}: run this in its folder, or set PYTHONPATH to that") \
            from error
    if make is None:
        raise AdapterError(f"module {module!r} has no {attribute!r}")
    adapter = make()
    if not isinstance(adapter, Adapter):
        raise AdapterError(f"{name} should return an Adapter, found {type(adapter).__name__}")
    return adapter


def write(out: Path, adapter: Adapter, findings: list[Finding]) -> None:
    """Writes OUT/policy_check.json and OUT/policy_check.html."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "policy_check.json").write_text(json.dumps(
        {"policy": adapter.name, "torch": torch.__version__, "findings": [dataclasses.asdict(f) for f in findings]},
        indent=1))
    rows = [[html.escape(f.name), f'<span class="{MARKS[f.verdict]}">{f.verdict}</span>', html.escape(f.sentence)]
            for f in findings]
    details = [f"<pre>{html.escape(json.dumps(f.measured, indent=1))}</pre>" for f in findings if f.verdict == FAILED]
    sections = [report_page.section("Properties", report_page.table(["property", "verdict", "what was seen"], rows))]
    sections += [report_page.section("What failed, in full", *details)] if details else []
    (out / "policy_check.html").write_text(report_page.page(
        f"Policy check: {adapter.name}", summary(findings), sections))


def summary(findings: list[Finding]) -> str:
    """A sentence with the number of findings of each verdict."""
    count = {word: sum(f.verdict == word for f in findings) for word in MARKS}
    return ", ".join(f"{count[word]} {word}" for word in MARKS)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where a property does not hold, 2 where the adapter cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", metavar="MODULE:CALLABLE")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for policy_check.json and policy_check.html")
    given = parser.parse_args(argv)
    sys.path.insert(0, "")
    try:
        adapter = load_adapter(given.adapter)
        findings = check(adapter)
    except AdapterError as error:
        print(f"{given.adapter}: {error}", file=sys.stderr)
        return 2
    for f in findings:
        print(f"{f.verdict:12} {f.name}: {f.sentence}")
    write(given.out, adapter, findings)
    print(f"{summary(findings)}; {given.out / 'policy_check.html'}")
    return int(any(f.verdict == FAILED for f in findings))


if __name__ == "__main__":
    sys.exit(main())
