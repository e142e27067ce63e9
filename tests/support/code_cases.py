"""A hundred replies and why they leave: no reason for those that hold Python with a function, class or loop."""

STAYS, SYNTAX, NO_CODE, NO_STRUCTURE, OTHER = "", "syntax", "no_code", "no_structure", "other_language"
DEF = "def f(x):\n    return x + 1\n"


def fence(code: str, label: str = "python", mark: str = "```") -> str:
    """A fenced block with a sentence before and after it."""
    return f"Here it is:\n\n{mark}{label}\n{code.rstrip(chr(10))}\n{mark}\n\nIt adds one."


CASES: list[tuple[str, str]] = [
    # what counts as a structure
    (fence(DEF), STAYS),
    (fence("async def f():\n    await g()"), STAYS),
    (fence("class A:\n    pass"), STAYS),
    (fence("for i in range(3):\n    print(i)"), STAYS),
    (fence("while True:\n    break"), STAYS),
    (fence("async def f():\n    async for x in y:\n        pass"), STAYS),
    (fence("if a:\n    for b in c:\n        d()"), STAYS),
    (fence("try:\n    while a:\n        a -= 1\nfinally:\n    pass"), STAYS),
    (fence("@decorator\ndef f(): ..."), STAYS),
    (fence("x = 1\nprint(x)"), NO_STRUCTURE),
    (fence("import os\nfrom sys import path"), NO_STRUCTURE),
    (fence("y = [x for x in range(9)]"), NO_STRUCTURE),
    (fence("f = lambda x: x + 1"), NO_STRUCTURE),
    (fence("if a:\n    b = 1\nelse:\n    b = 2"), NO_STRUCTURE),
    (fence("with open('a') as f:\n    data = f.read()"), NO_STRUCTURE),
    (fence("df.groupby('a').mean()"), NO_STRUCTURE),
    (fence(""), NO_STRUCTURE),
    (fence("# def f(): pass"), NO_STRUCTURE),
    (fence("'''def f(): pass'''"), NO_STRUCTURE),
    # labels
    (fence(DEF, "py"), STAYS),
    (fence(DEF, "Python"), STAYS),
    (fence(DEF, "PYTHON3"), STAYS),
    (fence(DEF, "python3.11"), STAYS),
    (fence(DEF, "ipython3"), STAYS),
    (fence(DEF, " python title='a.py'"), STAYS),
    (fence(DEF, "{.python .numberLines}"), STAYS),
    (fence(DEF, "{python}"), STAYS),
    (fence(DEF, "python:src/a.py"), STAYS),
    (fence(DEF, "python,linenos"), STAYS),
    (fence(DEF, "pyi"), STAYS),
    (fence(DEF, ""), STAYS),
    (fence("function f(x) { return x + 1; }", "javascript"), OTHER),
    (fence("int f(int x) { return x + 1; }", "c"), OTHER),
    (fence("fn f(x: i32) -> i32 { x + 1 }", "rust"), OTHER),
    (fence("SELECT 1;", "sql"), OTHER),
    (fence("for f in *; do echo $f; done", "bash"), OTHER),
    (fence(DEF, "jython"), OTHER),
    (fence(DEF, "text"), OTHER),
    (fence("for i in x:\n  y()", "pseudocode"), OTHER),
    # fences
    (fence(DEF, mark="~~~"), STAYS),
    (fence(DEF, mark="`````"), STAYS),
    (f"```python\n{DEF}", STAYS),  # not closed
    ("```python\ndef f(x):\n    return x +", SYNTAX),  # not closed, cut off
    (f"````python\n'''\n```\n'''\n{DEF}````", STAYS),  # a shorter fence inside
    (f"~~~python\n'''\n```\n'''\n{DEF}~~~", STAYS),  # another one inside
    (f"````markdown\n```python\n{DEF}```\n````", OTHER),  # a fence in a block of another language is its text
    (f"1. First:\n\n   ```python\n   {DEF.replace(chr(10), chr(10) + '   ')}\n   ```\n2. Done.", STAYS),
    (f"- a\n  ```python\n  {DEF.replace(chr(10), chr(10) + '  ')}\n  ```", STAYS),
    (f"> ```python\n> {DEF.replace(chr(10), chr(10) + '> ')}\n> ```", STAYS),
    (f"   ```python\n{DEF}   ```", STAYS),
    (f"```python\r\n{DEF.replace(chr(10), chr(13) + chr(10))}```", STAYS),
    ("Use ```def f(): pass``` for that.", NO_CODE),  # in a line, not a block
    ("```python def f(): pass ```", NO_CODE),
    ("Use `for x in y: pass` for that.", NO_CODE),
    (f"Write ```python\n{DEF}```", NO_STRUCTURE),  # begins inside a line, so that its end opens an empty block
    # several blocks
    (fence(DEF) + "\n" + fence("print(f(1))"), STAYS),
    (fence("x = 1") + "\n" + fence(DEF), STAYS),
    (fence(DEF) + "\n" + fence("def g(:"), SYNTAX),
    (fence("def g(:") + "\n" + fence(DEF), SYNTAX),
    (fence("x = 1") + "\n" + fence("y = 2"), NO_STRUCTURE),
    (fence("pip install numpy", "bash") + "\n" + fence(DEF), STAYS),
    (fence(DEF) + "\nOutput:\n" + fence("2 3 4", ""), STAYS),  # without a label and no Python: its output
    (fence("2 3 4", "") + "\n" + fence(DEF, ""), STAYS),
    (fence("2 3 4", "") + "\n" + fence("5 6 7", ""), SYNTAX),
    (fence("x = 1") + "\n" + fence(DEF, ""), STAYS),
    (fence("let x = 1;", "js") + "\n" + fence("SELECT 1;", "sql"), OTHER),
    (fence("let x = 1;", "js") + "\n" + fence("2 3 4", ""), OTHER),
    (fence("let x = 1;", "js") + "\n" + fence("x = 1"), NO_STRUCTURE),
    # no fences
    (DEF, STAYS),
    (f"\n\n{DEF}\n", STAYS),
    (f"    {DEF.replace(chr(10), chr(10) + '    ')}", STAYS),  # indented as a whole
    ('"""Doc.\n\n```\nexample\n```\n"""\n' + DEF, STAYS),  # code whose text holds a fence
    ("for i in range(3): print(i)", STAYS),
    ("x = 1", NO_CODE),
    ("The answer is 42.", NO_CODE),
    ("Hello", NO_CODE),
    ("", NO_CODE),
    ("Here is the code:\n\ndef f(x):\n    return x", NO_CODE),  # prose and code are not told apart
    ("for all that I know, yes.", NO_CODE),
    # reasoning
    (f"<think>```python\ndef broken(:\n```</think>\n{fence(DEF)}", STAYS),
    (f"<think>{fence(DEF)}</think>\nI do not know.", NO_CODE),
    (f"<think>a</think>{DEF}", STAYS),
    # sessions
    (fence(">>> def f(x):\n...     return x\n...\n>>> f(1)\n1"), STAYS),
    (fence(">>> for i in range(2):\n...     print(i)\n0\n1", "pycon"), STAYS),
    (fence(">>> x = 1\n>>> x\n1"), NO_STRUCTURE),
    (fence(">>> def f(:\n...     pass"), SYNTAX),
    (fence(">>>print(1)"), SYNTAX),  # no blank after the prompt
    (">>> class A: pass\n>>> A()\n<A object>", STAYS),
    # what does not parse
    (fence("print 'hello'"), SYNTAX),  # Python 2
    (fence("def f((a, b)): pass"), SYNTAX),
    (fence("try:\n    f()\nexcept ValueError, e:\n    pass"), SYNTAX),
    (fence("def f():\nreturn 1"), SYNTAX),
    (fence("def f():\n\tif x:\n        y()"), SYNTAX),  # tabs and blanks
    (fence("%timeit f()\nfor i in x: pass"), SYNTAX),
    (fence("!pip install numpy\nimport numpy"), SYNTAX),
    (fence("def f(x):\n    return “x”"), SYNTAX),
    # what parses though it would not run
    (fence("def f(): return undefined.name / 0"), STAYS),
    (fence("return [f for f in g]\nfor a in b: yield a"), STAYS),
    (fence("def größe(π): return '\\d' + f'{π!r:>10}'"), STAYS),
    (fence("def f(x: int | None = None, /, *, y: list[int]) -> None:\n    match x:\n        case 1: ..."), STAYS),
]
