"""The page's style sheet: light and dark, narrow and wide, on screen and on paper."""

from __future__ import annotations

from fl_darex.study.looks import DARK, LIGHT


def _colors(palette: tuple[str, ...]) -> str:
    return " ".join(f"--arm-{place}: {color};" for place, color in enumerate(palette))


_LIGHT = f"""
  --ground: #ffffff; --ink: #1a1d21; --soft: #565d66; --faint: #767b82; --line: #d9dce1;
  --raised: #f5f6f8; --link: #0b57d0; --warn: #fff4d6; --warn-line: #b07a00;
  {_colors(LIGHT)}
"""
_DARK = f"""
  --ground: #14171c; --ink: #e8eaed; --soft: #a9b0b9; --faint: #8b929b; --line: #333942;
  --raised: #1d2128; --link: #8ab4f8; --warn: #33290f; --warn-line: #e0b040;
  {_colors(DARK)}
"""

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{
  margin: 0; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}}
header, main, footer {{ max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }}
header {{ padding-top: 2.25rem; }}
footer {{ padding-bottom: 3rem; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0 0 .75rem; }}
h2 {{ font-size: 1.3rem; line-height: 1.25; margin: 3rem 0 .75rem; }}
h3 {{ font-size: 1.05rem; margin: 1.75rem 0 .5rem; }}
h1, h2, h3, p, li, summary, figcaption {{ overflow-wrap: anywhere; }}
th, td {{ overflow-wrap: break-word; }}
p, ul {{ max-width: 48rem; margin: .5rem 0; }}
a {{ color: var(--link); }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; }}
.skip {{ position: absolute; left: -100rem; }}
.skip:focus {{ left: 1rem; top: 1rem; background: var(--ground); padding: .25rem .75rem; }}
.lead {{ font-size: 1.2rem; line-height: 1.45; max-width: 52rem; margin: 0 0 1rem; }}
.small, figcaption, .note {{ font-size: .875rem; color: var(--soft); }}
.warn {{
  max-width: 52rem; margin: 1rem 0; padding: .6rem .9rem; background: var(--warn);
  border-left: 4px solid var(--warn-line);
}}
nav ul {{ display: flex; flex-wrap: wrap; gap: .15rem 1.25rem; margin: 0; padding: 0; }}
nav li {{ list-style: none; }}
nav a {{ display: inline-block; padding: .3rem 0; }}

.scroll {{ overflow-x: auto; margin: .75rem 0; }}
table {{ border-collapse: separate; border-spacing: 0; font-size: .875rem; line-height: 1.35; }}
caption {{ text-align: left; font-weight: 600; font-size: 1rem; padding: 0 0 .4rem; }}
th, td {{ padding: .4rem .55rem; text-align: left; vertical-align: top; }}
thead th {{ vertical-align: bottom; border-bottom: 2px solid var(--ink); font-weight: 600; }}
tbody th, tbody td {{ border-bottom: 1px solid var(--line); }}
tbody th {{ font-weight: 600; min-width: 7rem; max-width: 16rem; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
td.number {{ white-space: nowrap; }}
thead th.number {{ min-width: 4.3rem; }}
.more {{ display: block; color: var(--soft); font-weight: 400; font-size: .8125rem; }}
.pinned tbody th, .pinned thead th:first-child {{
  position: sticky; left: 0; background: var(--ground); z-index: 1;
}}

.figures {{ display: grid; gap: 2rem 1.5rem; margin: 1.25rem 0; }}
figure {{ margin: 0; min-width: 0; }}
.panels {{ display: grid; gap: 1rem 1.5rem; grid-template-columns: 1fr; }}
figure h3 {{ margin: 0 0 .4rem; }}
figure svg {{ display: block; width: 100%; max-width: 27rem; height: auto; overflow: visible; }}
figure svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
figcaption {{ max-width: 48rem; margin-top: .5rem; }}
.legend {{
  display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; padding: 0;
  margin: .4rem 0 0; font-size: .875rem; max-width: none;
}}
.legend li {{ display: flex; align-items: center; gap: .45rem; min-width: 0; }}
.legend svg {{ width: 2.4rem; height: .9rem; flex: none; display: inline-block; }}
@media (min-width: 48rem) {{
  .figures {{ grid-template-columns: repeat(6, minmax(0, 1fr)); grid-auto-flow: row dense; }}
  figure {{ grid-column: span 3; }}
  figure.wide {{ grid-column: 1 / -1; }}
  figure.wide .panels {{ grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); }}
}}
@media (min-width: 70rem) {{
  figure {{ grid-column: span 2; }}
  figure.half {{ grid-column: span 3; }}
}}

details {{ margin: .6rem 0; }}
summary {{ cursor: pointer; padding: .25rem 0; }}
pre {{
  margin: .4rem 0; padding: .8rem 1rem; overflow: auto; max-height: 30rem; white-space: pre;
  background: var(--raised); border: 1px solid var(--line); border-radius: 4px;
  font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}}
code {{ font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
button {{
  font: inherit; font-size: .875rem; color: inherit; background: var(--raised); cursor: pointer;
  border: 1px solid var(--faint); border-radius: 4px; padding: .3rem .8rem; min-height: 2rem;
}}

@page {{ size: A4 landscape; margin: 14mm; }}
@media print {{
  :root {{ color-scheme: light; {_LIGHT} }}
  body {{ font-size: 9.5pt; }}
  header, main, footer {{ max-width: none; padding: 0; }}
  nav, .skip, button {{ display: none; }}
  a {{ color: inherit; }}
  h1 {{ font-size: 18pt; }}
  h2 {{ font-size: 13pt; margin-top: 1.2rem; }}
  h2, h3, caption {{ break-after: avoid; }}
  figure, tr, .warn {{ break-inside: avoid; }}
  .scroll, pre {{ overflow: visible; max-height: none; }}
  pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
  table {{ font-size: 8pt; }}
  .more {{ font-size: 7pt; }}
  th, td {{ padding: .2rem .4rem; }}
  thead {{ display: table-header-group; }}
  thead th.number {{ min-width: 0; }}
  .pinned tbody th, .pinned thead th:first-child {{ position: static; }}
  .figures {{ display: flex; flex-wrap: wrap; gap: 6mm 2%; }}
  figure, figure.half {{ flex: 0 0 32%; order: 2; }}
  figure.half {{ order: 0; }}
  figure.wide {{ flex-basis: 100%; order: 1; }}
  figure svg {{ max-height: 150mm; }}
  figure.wide .panels {{ grid-template-columns: repeat(3, minmax(0, 1fr)); }}
}}
"""

SCRIPT = """
for (const box of document.querySelectorAll("details pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const told = (text) => { button.textContent = text; };
    try {
      await navigator.clipboard.writeText(box.textContent);
      told("Copied");
    } catch {
      getSelection().selectAllChildren(box);
      told("Selected: copy it with the keyboard");
    }
  });
  box.before(button);
}
"""
