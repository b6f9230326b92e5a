"""The README's table is the recorded one: `python bench/compare.py --readme` keeps it so."""

import json

import compare


def test_table_of_the_readme():
    found = json.loads((compare.ROOT / "bench" / "results" / "cpu.json").read_text())
    text = (compare.ROOT / "README.md").read_text(encoding="utf-8")
    table = compare.table(found["machine"], found["cases"])
    assert compare.in_readme(text, table) == text, "run python bench/compare.py --recorded --readme"
