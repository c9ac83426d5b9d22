"""The page's style: one column of text, figures in as many columns as fit, light or dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1b1c1e; --soft: #5b6370; --paper: #fdfdfc; --rule: #dfe2e6; --tint: #f3f4f5;
  --accent: #2f6fb0; --warn: #a4560f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e6e9; --soft: #9aa3af; --paper: #14161a; --rule: #2e333b; --tint: #1c1f25;
    --accent: #7fb2e5; --warn: #e6a15c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 70rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; font-weight: 650; }
h2 { font-size: 1.25rem; margin: 3.25rem 0 .5rem; padding-top: 1rem;
     border-top: 1px solid var(--rule); font-weight: 650; }
p { max-width: 44rem; margin: .5rem 0 1rem; }
.soft, .caption { color: var(--soft); }
.problems { margin: 1.5rem 0; padding: .75rem 1rem; border-left: 3px solid var(--warn);
            background: var(--tint); overflow-wrap: anywhere; }
.problems h2 { border: 0; margin: 0; padding: 0; font-size: 1rem; color: var(--warn); }
.problems ul { margin: .4rem 0 0; padding-left: 1.1rem; }
details { margin-top: 3.25rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
summary { cursor: pointer; font-size: 1.25rem; font-weight: 650; }
summary::marker { color: var(--soft); }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 4px; }
.figures { columns: 2 22rem; column-gap: 2.5rem; margin-top: 1.5rem; }
figure { margin: 0 0 2rem; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; color: var(--ink); }
.caption { font-size: .875rem; line-height: 1.45; margin: .5rem 0 0; }
.caption b { color: var(--ink); font-weight: 600; }
.scroll { overflow-x: auto; margin: .5rem 0 2rem; }
.figures + .caption { margin-top: 1rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid var(--ink);
     white-space: pre-line; line-height: 1.25; }
td { border-bottom: 1px solid var(--rule); }
tr.mean td { font-weight: 600; }
@media (max-width: 30rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
}
""".strip()
