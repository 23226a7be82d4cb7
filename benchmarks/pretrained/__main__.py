"""`python -m benchmarks.pretrained`: what few-shot, fine-tuning and one iteration of Algorithm 1 make of SmolLM2, on two cores.

The users ask for real cities, dishes, plants and films; the true click probability of every list is known.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0; 1 with --check when a goal is missed; 2 when the model cannot be read."""
    options = _parse(argv)
    _settle_threads()
    from benchmarks.smollm2 import save_smollm2

    with tempfile.TemporaryDirectory(prefix="queryloop-pretrained-") as work:
        folder = options.keep or Path(work)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            base = options.base or save_smollm2(folder / "base")
        except (FileExistsError, ModuleNotFoundError) as error:
            print(f"benchmarks.pretrained: {error}", file=sys.stderr)
            return 2
        return _run(options, base, folder)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    example = "example: python -m benchmarks.pretrained --quick --check"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__, epilog=example)
    parser.add_argument("--quick", action="store_true", help="fewer lists and prompts: under 12 minutes instead of 40")
    parser.add_argument("--seed", type=int, default=0, help="of the world (default 0)")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="a saved model (default: SmolLM2 out of its wheel)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder in which the trained models stay")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows, ratios, trainings, lists and goals there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed, naming it and by how much")
    return parser.parse_args(argv)


def _settle_threads() -> None:
    """Keep idle threads from spinning, which on two cores takes most of the other one's time; before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def _run(options: argparse.Namespace, base: Path, folder: Path) -> int:
    from benchmarks.pretrained.plan import choose_plan
    from benchmarks.pretrained.report import judge, make_report, render
    from benchmarks.pretrained.stages import run_all
    from queryloop.product.world import draw_world

    results = run_all(choose_plan(quick=options.quick), draw_world(options.seed, "english"), base, folder)
    goals = judge(results)
    if options.json:
        report = make_report(results, goals, options.seed)
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(render(results))
    for goal in goals:
        print(goal.verdict())
    return int(options.check and not all(goal.met for goal in goals))


if __name__ == "__main__":
    sys.exit(main())
