"""``make chart-check``: render every values file and the matrix, validate, and end with one JSON object."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import helm_python

from r1_bench.chart import generate, policy, validate
from r1_bench.chart.matrix import WRONG, Wrong, cases
from r1_bench.chart.render import Refused, merge, render, values_file


def outdated(chart: Path) -> list[str]:
    """The files that are made from types and catalog are as these make them."""
    wanted = generate.generated()
    return [
        f"{name} is out of date: `make chart-schema`"
        for name, text in wanted.items()
        if (chart / name).read_text(encoding="utf-8") != text
    ]


def lint(chart: Path, given: dict[str, object]) -> list[str]:
    """Helm's own findings, warnings included; an icon is not asked for."""
    report = helm_python.lint(str(chart), given, strict=True)
    return [f"lint: {each['path']}: {each['error']}" for each in report["messages"] if each["severity"] >= 2]


def refusal(chart: Path, wrong: Wrong) -> str | None:
    """Helm's message; None where the wrong values were taken."""
    try:
        render(chart, merge(values_file(chart / f"{wrong.base}.yaml"), wrong.values))
    except Refused as e:
        return str(e)
    return None


def names(message: str, key: str) -> bool:
    """A schema's message writes ``/router/replicas`` or ``router.replicas``, whatever the engine's version."""
    return key in message or key.replace("/", ".") in message


def check(chart: Path, crds: Path) -> dict[str, int]:
    """Print every violation; return the counts. ``crds``: the folder of KubeRay's CRDs, which may be missing."""
    known = validate.crds(crds)
    if known is None:
        print(f"KubeRay's CRDs are not in {crds}: RayService is checked as far as its pods", file=sys.stderr)
    violations, objects, charts = outdated(chart), 0, 0
    for case in cases(chart):
        charts += 1
        try:
            rendered = render(chart, case.values)
        except Refused as e:
            violations.append(f"{case.name}: {e}")
            continue
        objects += len(rendered.objects)
        if " " not in case.name:
            violations += [f"{case.name}: {fault}" for fault in lint(chart, case.values)]
        found = validate.faults(rendered.objects, known) + policy.faults(rendered, privileged=case.privileged)
        violations += [f"{case.name}: {fault}" for fault in found]
    rejections = 0
    for wrong in WRONG:
        message = refusal(chart, wrong)
        if message is not None and names(message, wrong.key):
            rejections += 1
        else:
            violations.append(f"{wrong.base} with {wrong.values}: expected {wrong.key} to be named, got {message}")
    print("\n".join(violations) or "no violation")
    return {"charts": charts, "objects": objects, "violations": len(violations), "schema_rejections": rejections}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chart", type=Path)
    parser.add_argument(
        "--crds", type=Path, default=Path("../shared/data/kuberay"), help="KubeRay's CRDs as files, and add-ons'"
    )
    given = parser.parse_args()
    counts = check(given.chart, given.crds)
    print(json.dumps(counts))
    sys.exit(1 if counts["violations"] else 0)


if __name__ == "__main__":
    main()
