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
    parser.add_argument("--out", metavar="FILE", help="the page (default: report.html in the working folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from hardbit.cli.output import output_file
    from hardbit.report import html_report
    from hardbit_deploy.results import load_result
    from hardbit_deploy.storage import write_atomically

    out = output_file(args.out or "report.html")
    documents = [load_result(path) for path in args.results]
    first = Path(args.results[0])
    page = html_report(documents, (first if first.is_dir() else first.parent) if len(documents) == 1 else None)
    write_atomically(out, page)
    if args.json:
        verdicts = [document["verdict"] for document in documents]
        print(json.dumps({"report": str(out), "verdicts": verdicts}))
    else:
        print(f"Report      {out}")
    return 0
