"""The pieces of an HTML page that opens offline: everything is inside it."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { margin: 2.5rem auto; padding: 0 1.5rem; max-width: 54rem; color: #222; background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 1rem; padding-top: 1rem; border-top: 1px solid #e4e4e4; }
p.facts, p.absent, figcaption { color: #666; }
p.absent { margin: .4rem 0; font-size: .92rem; }
figure { margin: 1.6rem 0 2.4rem; }
img { max-width: 100%; height: auto; display: block; }
figcaption { margin-top: .5rem; font-size: .95rem; }
table { border-collapse: collapse; margin: 1.2rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.4rem .25rem 0; text-align: left; border-bottom: 1px solid #eee; }
th { font-weight: 600; color: #666; }
pre { margin: .6rem 0 1.2rem; padding: .7rem 1rem; background: #f6f6f6; overflow-x: auto;
      font-size: .88rem; }
.scroll { overflow-x: auto; }
.alarm { margin: 1rem 0; padding: .7rem 1rem; border-left: 4px solid #d55e00; background: #fdf3ec; }
.calm { margin: 1rem 0; padding: .7rem 1rem; border-left: 4px solid #009e73; background: #eff8f4; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    return PAGE.substitute(title=escape(title), body="\n".join(parts))


def picture(data: bytes, alternative: str, caption: str) -> str:
    """A PNG inside the page, with a sentence below it."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" alt="{escape(alternative)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def paragraph(text: str, kind: str) -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def command(what: str, typed: str) -> str:
    """What to type, and what it does."""
    return f"<p>{escape(what)}:</p><pre>{escape(typed)}</pre>"


def notice(kind: str, strong: str, *lines: str) -> str:
    """A box whose first words stand out."""
    rest = "<br>".join(escape(line) for line in lines)
    return f'<div class="{kind}"><strong>{escape(strong)}</strong> {rest}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text."""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{cells}</tr>\n{body}</table></div>'
