"""What the README promises, so that CI can hold it to that.

    readme.py command README.md REGEX   prints the one shell command that REGEX matches
    readme.py run README.md             runs the python blocks in order, in one namespace

A block with `>>>` is a doctest: its outputs must be as printed. Any other block must just run.
"""

import doctest
import re
import sys
import textwrap
from pathlib import Path

SHELL = {"sh", "bash", "shell", "console"}
PYTHON = {"python", "py", "pycon"}
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(text, languages):
    """(line number of the first line, counted from 0; code) of each fenced block."""
    for match in FENCE.finditer(text):
        if match[2] in languages:
            yield text.count("\n", 0, match.start(3)), textwrap.dedent(match[3])


def command(text, pattern):
    code = "\n".join(code for _, code in blocks(text, SHELL)).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in code.splitlines()]
    found = sorted({line for line in lines if re.search(pattern, line)})
    if len(found) != 1:
        sys.exit(f"the README must have one shell command like {pattern!r}, has {found}")
    return found[0]


def run(text, name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    namespace = {"__name__": "__main__"}
    found = list(blocks(text, PYTHON))
    for line, code in found:
        if ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, namespace, name, name, line)
            test.globs = namespace  # get_doctest copied it
            runner.run(test, clear_globs=False)
        else:
            exec(compile("\n" * line + code, name, "exec"), namespace)
    if not found:
        sys.exit("the README has no python block")
    print(f"README: {len(found)} python blocks ran, {runner.failures} lines failed")
    sys.exit(bool(runner.failures))


if __name__ == "__main__":
    action, path, *pattern = sys.argv[1:]
    readme = Path(path).read_text(encoding="utf-8")
    if action == "command":
        print(command(readme, *pattern))
    else:
        run(readme, path)
