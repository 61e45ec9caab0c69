"""One HTML page that holds everything: no network, no scripts to load, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from spdf_dist.report.tables import Table

STYLE = """
:root{--page:#fff;--card:#f6f8fa;--ink:#1d2733;--muted:#5d6975;--grid:#dfe4ea;--accent:#2f7fc4;--warn:#9a5b00;
--warnbg:#fff4df;--sans:Inter,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
@media(prefers-color-scheme:dark){:root{--page:#14181d;--card:#1c2229;--ink:#e6eaee;--muted:#9aa5b0;--grid:#2d353e;
--accent:#63a9e6;--warn:#f0bd6a;--warnbg:#33291a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 var(--sans);-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:21px;margin:56px 0 8px;padding-top:18px;border-top:1px solid var(--grid)}
h3{font-size:15.5px;margin:28px 0 8px}
p{margin:8px 0;max-width:92ch}.note{max-width:110ch}
.sub,.note,figcaption,footer{color:var(--muted)}.sub{margin:0 0 18px}
.note,figcaption{font-size:13.5px;line-height:1.45}
nav{font-size:14px;margin:18px 0 0;display:flex;flex-wrap:wrap;gap:4px 18px}a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
.warn{background:var(--warnbg);color:var(--warn);border-radius:8px;padding:10px 14px;margin:16px 0;font-size:14.5px;
max-width:none}
.badge{display:inline-block;background:var(--warnbg);color:var(--warn);font-size:12px;font-weight:600;border-radius:5px;
padding:1px 7px;margin-left:8px;vertical-align:2px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:22px 0 6px}
.card{background:var(--card);border-radius:10px;padding:14px 16px}.card b{display:block;font-size:25px;line-height:1.25;
letter-spacing:-.01em;font-variant-numeric:tabular-nums}.card span{font-size:13.5px;color:var(--muted);display:block}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:26px 34px;
margin:16px 0;align-items:start}
figure{margin:0}figure svg{width:100%;height:auto;display:block;overflow:visible}figure.wide{grid-column:1/-1}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:14px;width:100%;font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--muted);font-size:12.5px;line-height:1.3;vertical-align:bottom}
th,td{padding:7px 10px;text-align:right;border-bottom:1px solid var(--grid);vertical-align:top;white-space:nowrap}
th{white-space:normal;min-width:64px}th.l,td.l{text-align:left}
td small{display:block;color:var(--muted);font-size:12px;line-height:1.35}
td.mark{color:var(--warn)}td.none{color:var(--muted);font-style:italic}th:first-child,td:first-child{padding-left:0}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:8px}
summary{cursor:pointer;color:var(--accent);font-size:14px}
footer{font-size:13px;margin-top:60px;border-top:1px solid var(--grid);padding-top:14px}
@media print{body{font-size:12px}main{padding:0}h2{break-after:avoid}figure,table{break-inside:avoid}}
"""


@dataclass
class Section:
    """A heading with text, figures (name, SVG, caption) and tables."""

    title: str
    intro: Sequence[str] = ()
    figures: list[tuple[str, str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: bool = False
    """Whether the reader opens it."""


def anchor(title: str) -> str:
    """A heading's id."""
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def render_cell(text: str, first: bool, colours: dict[str, str], tag: str, kind: str) -> str:
    """One cell; a second line is set smaller, a variant gets its dot of colour."""
    top, _, below = text.partition("\n")
    dot = f'<i class="dot" style="background:{colours[top]}"></i>' if first and top in colours else ""
    small = f"<small>{escape(below)}</small>" if below else ""
    return f"<{tag}{kind}>{dot}{escape(top)}{small}</{tag}>"


def render_table(table: Table, colours: dict[str, str]) -> str:
    """A table with its title and note."""
    badge = '<span class="badge">synthetic data</span>' if table.synthetic else ""
    left = ' class="l"'
    head = "".join(
        render_cell(text, False, {}, "th", left if k < table.labels else "") for k, text in enumerate(table.header)
    )
    body = []
    for r, row in enumerate(table.rows):
        cells = []
        for k, text in enumerate(row):
            kind = left if k < table.labels else ' class="mark"' if (r, k) in table.marks else ""
            if not kind and text in ("not run", "not computed", "–"):
                kind = ' class="none"'
            cells.append(render_cell(text, k == 0, colours, "td", kind))
        body.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h3 id="{anchor(table.name)}">{escape(table.title)}{badge}</h3><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def render_section(section: Section, colours: dict[str, str]) -> str:
    """A section."""
    parts = [f'<section><h2 id="{anchor(section.title)}">{escape(section.title)}</h2>']
    if section.folded:
        parts.append("<details><summary>Show</summary>")
    parts += [f"<p>{escape(text)}</p>" for text in section.intro]
    if section.figures:
        parts.append('<div class="figures">')
        for name, svg, caption in section.figures:
            wide = ' class="wide"' if name.startswith(("scores", "figure_4")) or len(section.figures) == 1 else ""
            parts.append(f"<figure{wide}>{svg}<figcaption>{escape(caption)}</figcaption></figure>")
        parts.append("</div>")
    parts += [render_table(table, colours) for table in section.tables]
    return "".join(parts) + ("</details>" if section.folded else "") + "</section>"


def render_page(
    title: str,
    subtitle: str,
    warning: str,
    cards: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    colours: dict[str, str],
    footer: str,
) -> str:
    """The whole page; ``cards`` are (figure, what it is)."""
    shown = [section for section in sections if section.figures or section.tables or section.intro]
    links = "".join(f'<a href="#{anchor(section.title)}">{escape(section.title)}</a>' for section in shown)
    boxes = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in cards
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><header><h1>{escape(title)}</h1>"
        f'<p class="sub">{escape(subtitle)}</p>'
        + (f'<p class="warn">{escape(warning)}</p>' if warning else "")
        + (f'<div class="cards">{boxes}</div>' if boxes else "")
        + f"<nav>{links}</nav></header>{''.join(render_section(section, colours) for section in shown)}"
        f"<footer>{escape(footer)}</footer></main></body></html>\n"
    )
