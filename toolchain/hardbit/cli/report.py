"""Make one page of HTML of a result, or of several side by side.

The page holds everything it shows and asks for nothing from anywhere."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EXAMPLES = """\
  hardbit report runs/fashion-cnn-w4a4/check
  hardbit report result.json --out report.html
  hardbit report a/result.json b/result.json --out comparison.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULT", nargs="+", help="a result.json, or the folder that holds one")
    parser.add_argument("--out", metavar="FILE", help="the page (default: report.html beside the first result)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from hardbit.report import html_report
    from hardbit_deploy.results import load_result
    from hardbit_deploy.storage import write_atomically

    folders = [path if path.is_dir() else path.parent for path in map(Path, args.results)]
    documents = [load_result(path) for path in args.results]
    page = html_report(documents, folders[0] if len(documents) == 1 else None)
    out = Path(args.out) if args.out else folders[0] / "report.html"
    if not out.parent.is_dir():
        from hardbit_deploy.errors import HardbitError

        raise HardbitError("there is no such folder", where=str(out.parent), remedy="make it first")
    write_atomically(out, page)
    if args.json:
        verdicts = [document["verdict"] for document in documents]
        print(json.dumps({"report": str(out), "verdicts": verdicts}))
    else:
        print(f"Report      {out}")
    return 0
