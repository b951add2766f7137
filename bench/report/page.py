"""One HTML page without anything from elsewhere: no script, no font, no picture that is not inside."""

from __future__ import annotations

from html import escape
from typing import Any

from bench import machine
from bench.report.pictures import sections
from bench.report.svg import RULES, Bars, Lines, variables
from bench.results import Results
from bench.stats import figure, summarize

STYLE = """\
:root{LIGHT}@media(prefers-color-scheme:dark){:root{DARK;color-scheme:dark}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1480px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.9rem;line-height:1.2;margin:.2em 0 .1em;letter-spacing:-.02em}
h2{font-size:1.3rem;margin:2.4em 0 .1em;letter-spacing:-.01em}h3{font-size:1rem;margin:0}
p{margin:.3em 0;max-width:90ch}.soft,.meta{color:var(--soft)}.meta{font-size:.9rem}
.tiles{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,240px),1fr));margin:22px 0 6px}
.tile,.card,.note,details{background:var(--back);border:1px solid var(--line);border-radius:12px}
.tile{padding:14px 18px}.tile b{display:block;font-size:2rem;line-height:1.15;letter-spacing:-.03em;
font-variant-numeric:tabular-nums}.tile b small{font-size:1rem;font-weight:500;color:var(--soft);letter-spacing:0}
.tile span{font-size:.88rem;color:var(--soft)}.tile.first b{color:var(--c-ours)}
.cards{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(min(100%,410px),1fr));margin-top:14px;
align-items:start}
.card{padding:14px 16px 10px;margin:0}.card h3{display:flex;justify-content:space-between;gap:8px;margin-bottom:6px}
.card h3 span{font-weight:400;color:var(--soft);font-size:.82rem;white-space:nowrap;padding-top:.15em}
.card svg{display:block;width:100%;height:auto}
.note{padding:12px 18px;margin:16px 0;border-left:4px solid var(--c-orange)}.note.good{border-left-color:var(--c-ours2)}
.note.plain{border-left-color:var(--c-grey);color:var(--soft)}
details{margin:12px 0;padding:10px 18px}summary{cursor:pointer;font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;margin:10px 0;width:100%}
th{text-align:left;font-weight:600;color:var(--soft)}
td,th{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.met{color:var(--c-ours2);font-weight:600}.missed{color:var(--c-red);font-weight:600}
pre{overflow-x:auto;font-size:.8rem;line-height:1.4;background:var(--track);padding:10px;border-radius:8px;
white-space:pre-wrap;overflow-wrap:anywhere}
"""


def render(results: Results) -> str:
    """The page."""
    style = STYLE.replace("LIGHT", variables(False)).replace("DARK", variables(True)) + RULES
    body = [
        "<h1>ipsecd, measured</h1>",
        f'<p class="meta">{escape(results.when[:16].replace("T", " "))} &middot; '
        f"{escape(machine.title(results.machine))} &middot; {results.options.get('rounds')} interleaved rounds of "
        f"{results.options.get('seconds')} s &middot; <code>{escape(str(results.options.get('command')))}</code></p>",
        _notes(results),
        _tiles(results),
    ]
    for section in sections(results):
        cards = "".join(_card(picture) for picture in section.pictures)
        body.append(f'<section><h2>{escape(section.title)}</h2><p class="soft">{escape(section.text)}</p>'
                    f'<div class="cards">{cards}</div></section>')  # fmt: skip
    body += [_targets(results), _figures(results), _subjects(results), _machine(results)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>ipsecd, measured</title><style>{style}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _card(picture: Bars | Lines) -> str:
    words = f"{picture.unit}, {picture.note}" if picture.note else picture.unit
    return (f'<figure class="card"><h3>{escape(picture.title)}<span>{escape(words)}</span></h3>'
            f"{picture.render()}</figure>")  # fmt: skip


def _notes(results: Results) -> str:
    noise = results.noise()
    out = []
    if results.interrupted:
        out.append(("", "The run was interrupted; what is missing was not measured."))
    for why in noise["why"]:
        out.append(("", f"Too noisy, do not trust these figures: {why}."))
    if noise["few_rounds"]:
        out.append(("", "Few rounds: good for a look, not for publishing."))
    if not out:
        out.append((" good", f"Quiet enough: other programs took {noise['foreign_cpu']:.1%} of the CPUs, and half of "
                    f"the series scatter by less than {noise['median_spread']:.0%} of their medians."))  # fmt: skip
    if results.skipped:
        out.append((" plain", f"Skipped: {'. '.join(results.skipped)}."))
    out += [("", f"Failed: {text.splitlines()[0][:200]}") for text in results.failures[:8]]
    return "".join(f'<div class="note{kind}">{escape(text)}</div>' for kind, text in out)


#: check, how to show it, and words below
TILES = (
    ("one TCP stream / strongSwan", "{:.1f}<small> times</small>", "strongSwan's TCP throughput (kernel-libipsec)"),
    ("UDP 64 B received / strongSwan", "{:.1f}<small> times</small>", "strongSwan's packets per second at 64 octets"),
    ("CPU per Gbit / strongSwan", "1/{:.0f}", "of strongSwan's CPU time for the same data"),
    ("round trip added (every 10 ms) / strongSwan", "{:.2f}<small> times</small>", "the round trip strongSwan adds"),
    ("ChaCha20-Poly1305 / wireguard-go", "{:.1f}<small> times</small>", "wireguard-go's TCP, both with ChaCha20"),
    ("one TCP stream / copy instead of the cipher", "{:.0%}", "of what a copy in place of the cipher gives"),
    ("IKEv2 handshakes per CPU second of the daemon", "{:.0f}<small> /s</small>", "IKEv2 handshakes per CPU second"),
    ("initiate to first packet, ms", "{:.1f}<small> ms</small>", "from initiate to the first packet"),
)


def _tiles(results: Results) -> str:
    found = {row["what"]: row["value"] for row in results.checks}
    tiles = []
    best = results.summary("tcp1", "ipsec", panel="peers")
    if best:
        tiles.append(f'<div class="tile first"><b>{best.median:.1f}<small> Gbit/s</small></b><span>one TCP stream, '
                     "AES-128-GCM, everything on this machine</span></div>")  # fmt: skip
    for what, shape, words in TILES:
        value = found.get(what)
        if value:
            shown = shape.format(1 / value if shape.startswith("1/") else value)
            tiles.append(f'<div class="tile"><b>{shown}</b><span>{escape(words)}</span></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _targets(results: Results) -> str:
    if not results.checks:
        return ""
    rows = "".join(
        f"<tr><td>{escape(row['what'])}</td><td class=n>{figure(row['value'])}</td>"
        f"<td class=n>{figure(row['low'])} &ndash; {figure(row['high'])}</td>"
        f"<td class=n>{'&ge;' if row['at_least'] else '&le;'} {row['target']:g}</td>"
        f"<td class={'met>met' if row['met'] else 'missed>missed'}</td></tr>"
        for row in results.checks
    )
    return (f'<section><h2>Targets</h2><p class="soft">Medians over the rounds; a stall counts with its worst.</p>'
            f'<div class="card scroll"><table><tr><th>What<th class=n>Value<th class=n>Rounds<th class=n>Target<th>'
            f"</tr>{rows}</table></div></section>")  # fmt: skip


def _figures(results: Results) -> str:
    out = []
    for metric in results.metrics.values():
        rows = []
        for subject, params, samples in results.of(metric.name):
            found = summarize([sample.value for sample in samples])
            words = ", ".join(f"{name} {value}" for name, value in params.items())
            rows.append(f"<tr><td>{escape(subject)}<td>{escape(words)}<td class=n>{found.median:,.{metric.digits}f}"
                        f"<td class=n>{found.low:,.{metric.digits}f} &ndash; {found.high:,.{metric.digits}f}"
                        f"<td class=n>{found.count}</tr>")  # fmt: skip
        head = "<tr><th>Subject<th><th class=n>Median<th class=n>Range<th class=n>Rounds</tr>"
        out.append(f"<h3>{escape(metric.title)}, {escape(metric.unit)}</h3>"
                   f"<div class=scroll><table>{head}{''.join(rows)}</table></div>")  # fmt: skip
    return f"<section><h2>Everything behind it</h2><details><summary>All figures</summary>{''.join(out)}</details>"


def _subjects(results: Results) -> str:
    out = []
    for name, subject in results.subjects.items():
        facts: dict[str, Any] = dict(subject.get("facts") or {})
        log = facts.pop("log", "")
        words = "; ".join(f"{key} {value}" for key, value in facts.items())
        commands = "\n".join(subject.get("commands") or ())
        text = "\n\n".join(part for part in (commands, log) if part)
        out.append(f"<h3>{escape(name)}: {escape(subject['title'])}</h3><p class=meta>{escape(words)}</p>"
                   + (f"<pre>{escape(text)}</pre>" if text else ""))  # fmt: skip
    return f"<details><summary>What was measured, with its configuration</summary>{''.join(out)}</details>"


def _machine(results: Results) -> str:
    rows = []
    for key, value in results.machine.items():
        shown = "; ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else (
            ", ".join(map(str, value)) if isinstance(value, list) else str(value))  # fmt: skip
        rows.append(f"<tr><td>{escape(key)}<td>{escape(shown)}</tr>")
    return (f"<details><summary>The machine</summary><div class=scroll><table>{''.join(rows)}</table></div>"
            "</details></section>")  # fmt: skip
