"""The look of report.html: readable on a phone, on a desk and on paper, without a network."""

__all__ = ["CSS"]

CSS = """
:root {
  color-scheme: light;
  --ink: #1b1f24; --soft: #57606a; --line: #d5dadf; --wash: #f6f8fa; --accent: #0072b2; --warn: #8a4600;
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 58rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.015em; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.75rem 0 .5rem; letter-spacing: -.005em; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 44rem; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.kicker { color: var(--soft); font-size: .85rem; margin: 0 0 .15rem; }
.origin, .note, figcaption { color: var(--soft); font-size: .9rem; }
.origin { margin: .35rem 0 0; }
.warnings { margin: 1.25rem 0 0; padding: .7rem 1rem; border: 1px solid #e3b341; border-left-width: 5px;
  border-radius: 4px; background: #fff8e6; }
.warnings p, .warnings ul { margin: .15rem 0; max-width: none; }
.warnings ul { padding-left: 1.1rem; }
.warnings strong { color: var(--warn); }
.smoke { font-size: 1.05rem; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: 1.5rem 0 0; padding: 0; }
.tile { border-top: 3px solid var(--ink); padding: .5rem 0 0; }
.tile dt { color: var(--soft); font-size: .82rem; line-height: 1.3; }
.tile dd { margin: 0; font-size: 1.75rem; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile dd small { font-size: .55em; font-weight: 400; color: var(--soft); }
/* A shadow at an edge says that the table goes on beyond it. */
.scroll { overflow-x: auto; margin: .5rem 0 .6rem; background:
  linear-gradient(to right, #fff 1.5rem, transparent) left / 2.5rem 100%,
  linear-gradient(to left, #fff 1.5rem, transparent) right / 2.5rem 100%,
  radial-gradient(farthest-side at 0 50%, #0003, transparent) left / .8rem 100%,
  radial-gradient(farthest-side at 100% 50%, #0003, transparent) right / .8rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 100%;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
th, td { padding: .34rem .6rem; text-align: right; vertical-align: baseline; white-space: nowrap;
  font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.name, td.name { text-align: left; white-space: normal; min-width: 6rem; max-width: 18rem;
  overflow-wrap: break-word; }
thead th { font-weight: 600; vertical-align: bottom; line-height: 1.25; border-bottom: 1px solid var(--ink); }
thead small { display: block; font-weight: 400; color: var(--soft); }
tbody tr + tr > * { border-top: 1px solid #eceff2; }
tr.block th { font-weight: 600; padding-top: .75rem; color: var(--soft); font-size: .85rem; }
tbody tr.mean > * { font-weight: 650; border-top: 1px solid var(--soft); }
tr.mean + tr > *, tbody tr.block > * { border-top: 0; }
tr.headline > * { font-weight: 650; background: #eaf3f9; }
tr.headline th:first-child { box-shadow: inset 3px 0 0 var(--accent); padding-left: .6rem; }
tr.below > * { color: var(--warn); }
.best { font-weight: 700; }
.tag { font-size: .75rem; font-weight: 600; color: var(--accent); margin-left: .4rem; white-space: nowrap; }
figure { margin: .75rem 0 0; }
figure img { display: block; max-width: 100%; height: auto; }
figure img.sheet { image-rendering: pixelated; border: 1px solid var(--line); }
.thumbnails { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .75rem; }
.thumbnails figcaption { font-size: .8rem; overflow-wrap: anywhere; }
figcaption { margin-top: .4rem; max-width: 44rem; }
details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { padding: .55rem 0; cursor: pointer; font-weight: 600; }
summary span { color: var(--soft); font-weight: 400; }
details > div { padding: 0 0 1rem; }
.facts { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .15rem 1.25rem; font-size: .9rem;
  margin: .5rem 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.failed li { margin: .4rem 0; }
footer { margin-top: 3rem; padding-top: .75rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .85rem; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; font-size: 15px; }
  h1 { font-size: 1.5rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .tile dd { font-size: 1.5rem; }
  table { font-size: .85rem; }
  th, td { padding: .34rem .4rem; }
  .wide { overflow-x: auto; }
  .wide img { max-width: none; width: 36rem; }
  .wide figcaption { position: sticky; left: 0; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2, h3 { break-after: avoid; }
  figure, table, .warnings, .tiles { break-inside: avoid; }
  .scroll, .wide { overflow: visible; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  a { color: inherit; }
}
"""
