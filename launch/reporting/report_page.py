"""HTML of a report: one self-contained page that holds its images and fetches nothing from a network."""

import base64
import html

CSS = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --blue: #2563eb; --good: #15803d;
  --bad: #b91c1c; --page: #f8fafc; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #374151; --blue: #60a5fa;
  --good: #4ade80; --bad: #f87171; --page: #0b1120; --card: #111827; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--page); }
main { max-width: 1060px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 78ch; }
.lead, figcaption, .note { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 22px; margin-top: 18px; }
figure { margin: 10px 0 0; }
figure img { width: 100%; height: auto; display: block; background: #fff; border-radius: 6px; }
img.pixels { image-rendering: pixelated; }
.heads { display: grid; font-size: 13px; font-weight: 600; text-align: center; }
.two { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 4fr); gap: 26px; align-items: start; }
@media (max-width: 760px) { .two { grid-template-columns: 1fr; } section { padding: 14px 12px; overflow-x: auto; }
  main { padding: 16px 8px 40px; } figure { overflow-x: auto; }
  figure img:not(.pixels) { min-width: 600px; } .heads { font-size: 10px; } }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 10px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-size: 12px; color: var(--soft); font-weight: 600; }
td.number { white-space: nowrap; }
.met { color: var(--good); font-weight: 600; }
.missed { color: var(--bad); font-weight: 600; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 12px; }
.bar { background: var(--line); border-radius: 3px; height: 9px; min-width: 90px; }
.bar div { background: var(--blue); border-radius: 3px; height: 9px; }
"""


def page(title: str, lead: str, sections: list[str]) -> str:
    """Makes the whole document; title and lead are plain text, sections are HTML."""
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
            f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
            + "\n".join(sections) + "\n</main>\n</body>\n</html>\n")


def section(title: str, *parts: str) -> str:
    """Makes a titled card of HTML parts."""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def text(words: str) -> str:
    """Makes a paragraph of plain text."""
    return f"<p>{html.escape(words)}</p>"


def image(data: bytes, kind: str, alt: str, caption: str = "", pixels: bool = False) -> str:
    """Makes a figure. kind: svg+xml, png or webp; pixels: keeps pixels square-edged when the browser scales."""
    encoded = base64.b64encode(data).decode()
    marked = ' class="pixels"' if pixels else ""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (f'<figure><img{marked} loading="lazy" decoding="async" alt="{html.escape(alt)}" '
            f'src="data:image/{kind};base64,{encoded}">{below}</figure>')


def heads(labels: list[str]) -> str:
    """Spreads headings evenly over an image's columns."""
    cells = "".join(f"<div>{html.escape(label)}</div>" for label in labels)
    return f'<div class="heads" style="grid-template-columns: repeat({len(labels)}, 1fr)">{cells}</div>'


def table(head: list[str], rows: list[list[str]]) -> str:
    """Makes a table of HTML cells."""
    body = "\n".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{_cells(head, 'th')}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _cells(row: list[str], tag: str) -> str:
    return "".join(f"<{tag}>{cell}</{tag}>" for cell in row)


def bar(fraction: float) -> str:
    """Makes a horizontal bar, full at 1."""
    return f'<div class="bar"><div style="width: {100 * min(max(fraction, 0), 1):.1f}%"></div></div>'


def legend(colours: dict[str, tuple[int, int, int]]) -> str:
    """Makes a legend: names beside squares of their colours."""
    keys = "".join(f'<span class="key" style="background: rgb{colour}"></span>{html.escape(name)}'
                   for name, colour in colours.items())
    return f'<p class="note">{keys}</p>'
