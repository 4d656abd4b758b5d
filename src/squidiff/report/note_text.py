"""The text of the lab note: from what is known of its experiments to sections of Markdown, in one of its languages.

Owns: the structure of the note and how values are written in it. Must not know: how they were measured. It renders in
Obsidian and on GitHub; what comes from data cannot end a table, a line or a comment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from squidiff.evaluate.metrics import METRICS
from squidiff.report.note import Block, NewSection
from squidiff.report.note_words import WORDS
from squidiff.report.numbers import MISSING, shown

SUMMARY, BACKGROUND = "summary", "background"
STEPS = ("install", "check", "prepare", "train", "predict", "evaluate")
INSTALL = "python -m venv .venv; .venv/bin/pip install squidiff-ng"


def head(records: Sequence[Mapping[str, Any]], title: str) -> str:
    """Front matter and title, which are the author's once they are written."""
    said = records[0]["said"]
    tags = "".join(f"\n  - {_plain(tag)}" for tag in said.get("tags") or ["experiment", "squidiff"])
    date = title[:8]
    lines = (
        "---",
        f"date: {date[:4]}-{date[4:6]}-{date[6:]}",
        f"tags:{tags}",
        "status: in progress",
        f"author: {_quoted(said.get('author', ''))}",
        "---",
        "",
        f"# {_inline(title)}",
        "",
    )
    return "\n".join(lines)


def sections(records: Sequence[Mapping[str, Any]]) -> list[NewSection]:
    """Of all experiments of a note, in their order, in the language of the last."""
    words = WORDS[records[-1]["said"]["language"]]
    ordered = sorted(records, key=lambda record: record["number"])
    return [_background(ordered[0], words), *(_experiment(r, words) for r in ordered), _summary(ordered, words)]


def beside(records: Sequence[Mapping[str, Any]]) -> str:
    """The line before a block that stands beside one that its author edited."""
    return f"*{WORDS[records[-1]['said']['language']]['beside']}*"


def _background(record: Mapping[str, Any], words: Mapping[str, str]) -> NewSection:
    said = record["said"]
    body = [f"**{words['purpose']}**: {_inline(said['purpose']) or words['write_here']}", ""]
    body += [f"**{words['background']}**: {_inline(said['background']) or words['write_here']}"]
    if said["references"]:
        body += ["", f"**{words['references']}**", *(f"- {_inline(text)}" for text in said["references"])]
    block = Block(f"{BACKGROUND}/text", _callout("Todo", words["background"], body))
    return NewSection(BACKGROUND, f"## {words['background']}\n\n{{{block.name}}}\n", (block,))


def _experiment(record: Mapping[str, Any], words: Mapping[str, str]) -> NewSection:
    name = f"exp{record['number']:02}"
    blocks = (
        Block(f"{name}/works", _callout("Works", words["information"], _works(record, words))),
        Block(f"{name}/results", _callout("Done", "Results", _results(record, name, words))),
        Block(f"{name}/observations", _callout("Important", words["observations"], _observations(record, words))),
    )
    said = record["said"]
    issues = [f"- {_inline(text)}" for text in said["issues"]] or [
        f"- {words['write_here' if record['failure'] else 'no_issues']}"
    ]
    steps = [f"- [ ] {_inline(text)}" for text in said["next_steps"]] or [f"- [ ] {words['no_next_steps']}"]
    title = f" ({_inline(said['title'])})" if said["title"] else ""
    lines = [f"## {words['experiment']}{record['number']}: Exp{record['number']:02}{title}", ""]
    for block in blocks:
        lines += [f"{{{block.name}}}", ""]
    lines += [f"### {words['issues']}", "", *issues, "", f"### {words['next_steps']}", "", *steps, ""]
    lines += [f"### {words['my_notes']}", "", words["write_here"], ""]
    return NewSection(name, "\n".join(lines), blocks)


def _works(record: Mapping[str, Any], words: Mapping[str, str]) -> list[str]:
    said = record["said"]
    lines = [f"- **{words['number']}**: Exp{record['number']:02}", f"- **{words['date']}**: {record['date']}"]
    lines += [f"- **{words['operator']}**: {_inline(said['author']) or words['write_here']}"]
    lines += [f"- **{words['purpose']}**: {_inline(said['purpose']) or words['write_here']}"]
    if said["design"]:
        lines += ["", f"**{words['design']}**: {_inline(said['design'])}"]
    rows = [
        (f"S{i:02}", words[s["kind"]], _population(s), f"{s['n_cells']:,}", "")
        for i, s in enumerate(record["samples"], start=1)
    ]
    if rows:
        lines += ["", f"**{words['samples']}**", "", *_table(words["sample_columns"], rows)]
    lines += ["", f"**{words['methods']}**", ""]
    made = {step["kind"]: step for step in record["steps"]}
    made["install"] = {"command": INSTALL, "parameters": ""}
    for i, kind in enumerate((kind for kind in STEPS if kind in made), start=1):
        parameters = _inline(made[kind]["parameters"]) or words["defaults"]
        lines += [f"{i}. **{words[kind]}**", f"   - **{words['why']}**: {words[f'why_{kind}']}"]
        lines += [f"   - **{words['command']}**: {_code(made[kind]['command'])}"]
        lines += [f"   - **{words['parameters']}**: {parameters}"]
    return lines


def _results(record: Mapping[str, Any], name: str, words: Mapping[str, str]) -> list[str]:
    lines = [f"**{words['key_findings']}**", ""]
    findings = [words["leak"].format(sentence=text) for text in record["leaks"]]
    if record["failure"]:
        findings += [words["failure"].format(failure=record["failure"])]
    judged = [row for row in record["metrics"] if row["met"] is not None]
    n_met = sum(row["met"] for row in judged)
    if judged or not record["failure"]:
        findings += [words["met"].format(met=n_met, n=len(judged)) if judged else words["no_targets"]]
    missed = [_metric(row["name"], words) for row in judged if not row["met"]]
    if missed:
        findings += [words["worst"].format(names=", ".join(missed))]
    if record["verdicts"]:
        said = _verdicts(record["verdicts"], words)
        findings += [words["against"].format(verdicts=said)]
    lines += [f"- {_inline(text)}" for text in findings]
    if record["metrics"]:
        lines += ["", f"**{words['metrics']}**", "", *_table(words["metric_columns"], _metric_rows(record, words))]
    if record["trials"]:
        lines += ["", f"**{words['trials']}**", "", *_trials(record["trials"], words)]
    lines += ["", f"**{words['key_figures']}**", ""]
    for figure in record["figures"]:
        lines += [f"![{words[figure]}]({name}/{figure})", f"*{words[figure]}*", ""]
    lines += [f"- {_inline(words['missing'].format(what=text))}" for text in record["missing"]]
    return [*lines, f"- [{words['page']}]({name}/index.html)"]


def _metric_rows(record: Mapping[str, Any], words: Mapping[str, str]) -> Iterable[Sequence[str]]:
    floors, ceilings = (record["observations"].get(name, {}) for name in ("floors", "ceilings"))
    for row in record["metrics"]:
        name = row["name"]
        status = {True: words["pass"], False: words["fail"], None: ""}[row["met"]]
        value = words["not_measured"] if row["value"] is None else shown(row["value"])
        target = row["target"] or MISSING
        yield _metric(name, words), value, target, status, shown(floors.get(name)), shown(ceilings.get(name))


def _trials(trials: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> list[str]:
    names = [name for name in trials[0] if name not in ("validation_loss", "seconds", "failure")]
    rows = []
    for t in trials:
        loss = t["failure"] or shown(t["validation_loss"])
        rows.append((*(f"{t[name]:g}" for name in names), loss, shown(t["seconds"])))
    lines = _table(" | ".join([*(name.replace("_", " ") for name in names), words["trial_columns"]]), rows)
    known = [t for t in trials if t["validation_loss"] is not None]
    if known:
        best = min(known, key=lambda t: t["validation_loss"])
        said = ", ".join(f"{name.replace('_', ' ')} {best[name]:g}" for name in names)
        lines += ["", words["best_trial"].format(settings=said)]
    return lines


def _observations(record: Mapping[str, Any], words: Mapping[str, str]) -> list[str]:
    seen, metrics = record["observations"], {row["name"]: row["value"] for row in record["metrics"]}
    lines = [words["finding"].format(finding=finding) for finding in seen.get("findings", [])]
    if "utilisation" in seen:
        lines += [words["device"].format(device=seen["device"], utilisation=f"{seen['utilisation']:.0%}")]
    elif "device" in seen:
        lines += [words["device_alone"].format(device=seen["device"])]
    if "epochs" in seen:
        speed = f"{seen['cells_per_s']:,.0f}"
        lines += [words["epochs"].format(n_steps=f"{seen['n_steps']:,}", epochs=f"{seen['epochs']:.1f}", speed=speed)]
    if seen.get("memory_mb"):
        lines += [_memory(seen, words)]
    if "early_oscillation" in seen:
        ratio = seen["early_oscillation"]
        lines += [
            words["oscillation_unknown"]
            if ratio is None
            else words["oscillation"].format(ratio=shown(ratio), n=seen["n_warmup_steps"])
        ]
    if seen.get("lowest_validation_loss") is not None:
        lines += [words["validation"].format(loss=shown(seen["lowest_validation_loss"]))]
    if seen.get("batch_sizes"):
        lines += [words["batch_sizes"].format(sizes="; ".join(_batch_size(of, words) for of in seen["batch_sizes"]))]
    if metrics.get("load_seconds") is not None:
        lines += [words["load"].format(seconds=shown(metrics["load_seconds"]))]
    if record["failure"]:
        lines += [words["failure"].format(failure=record["failure"])]
    return [f"- {_inline(line)}" for line in lines] or [f"- {words['not_measured']}"]


def _memory(seen: Mapping[str, Any], words: Mapping[str, str]) -> str:
    grew = words["growth_unknown"]
    if seen["memory_growth_mb"] is not None:
        grew = words["grew" if seen["memory_grew"] else "steady"].format(mb=f"{seen['memory_growth_mb']:.0f}")
    first, last, peak = (f"{mb:,.0f}" for mb in (seen["memory_mb"][0], seen["memory_mb"][-1], max(seen["memory_mb"])))
    return words["memory"].format(first=first, last=last, peak=peak, grew=grew)


def _batch_size(of: Mapping[str, Any], words: Mapping[str, str]) -> str:
    if of["cells_per_s"] is None:
        return words["batch_size_failed"].format(size=of["batch_size"], failure=of["failure"])
    return words["batch_size"].format(size=of["batch_size"], speed=f"{of['cells_per_s']:,.0f}")


def _summary(records: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> NewSection:
    rows = []
    for record in records:
        judged = [row["met"] for row in record["metrics"] if row["met"] is not None]
        verdicts = _verdicts(record["verdicts"], words) or MISSING
        met = f"{sum(judged)} / {len(judged)}" if judged else MISSING
        number = f"Exp{record['number']:02}"
        rows.append((number, record["said"]["title"], record["date"], words[record["status"]], met, verdicts))
    tools: dict[str, str] = {}
    for record in records:
        tools |= record["tools"]
    tool_rows = [(name, version, words.get(f"purpose_{name.lower()}", "")) for name, version in tools.items()]
    files = [f"- Exp{r['number']:02}: {_code(file)}" for r in records for file in r["files"].values()]
    steps = [f"- Exp{r['number']:02}: {_code(step['command'])}" for r in records for step in r["steps"]]
    sources = [f"**{words['data_files']}**", "", *files, "", f"**{words['protocols']}**", "", *steps, ""]
    sources += [f"**{words['tools']}**", "", *_table(words["tool_columns"], tool_rows)]
    blocks = (
        Block(f"{SUMMARY}/table", "\n".join(_table(words["summary_columns"], rows)) + "\n"),
        Block(f"{SUMMARY}/sources", "\n".join(sources) + "\n"),
    )
    said = [_inline(r["said"]["discussion"]) for r in records if r["said"]["discussion"]]
    lines = [f"## {words['summary']}", "", f"{{{blocks[0].name}}}", ""]
    lines += [f"### {words['discussion']}", "", *(said or [words["write_here"]]), ""]
    for part in ("conclusions", "recommended"):
        lines += [f"### {words[part]}", "", words["write_here"], ""]
    lines += [f"### {words['references']}", "", f"{{{blocks[1].name}}}", ""]
    lines += [f"### {words['my_notes']}", "", words["write_here"], ""]
    return NewSection(SUMMARY, "\n".join(lines), blocks)


def _verdicts(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """How often each was said, the worst first."""
    said = []
    for verdict, n in counts.items():
        kind, _, rest = verdict.partition(" ")
        said.append(words.get(f"verdict_{kind}", verdict).format(n=n, name=rest.removeprefix("to ")))
    return "; ".join(said)


def _metric(name: str, words: Mapping[str, str]) -> str:
    said = words.get(name, name.replace("_", " "))
    return said if name not in METRICS or METRICS[name].higher_is_better else f"{said} (↓)"


def _population(sample: Mapping[str, Any]) -> str:
    time = sample.get("time")
    parts = [sample.get("context"), sample.get("condition"), None if time is None else f"time {time:g}"]
    return ", ".join(part for part in parts if part) or MISSING


def _callout(kind: str, title: str, lines: Sequence[str]) -> str:
    """As Obsidian has them: a quotation whose first line names the kind, and is a paragraph of its own elsewhere."""
    return "".join(f"{line}\n" for line in [f">[!{kind}] {title}", ">", *(f"> {text}".rstrip() for text in lines)])


def _table(columns: str, rows: Iterable[Sequence[str]]) -> list[str]:
    names = columns.split(" | ")
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return lines + [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]


def _cell(text: str) -> str:
    return _inline(str(text)).replace("|", "\\|")


def _inline(text: str) -> str:
    """Text in a line: no tag or comment begins in it, and no line ends."""
    return " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")


def _code(text: str) -> str:
    """A command as it is, in as many backticks as it needs."""
    fence = "`" * (1 + max((len(run) for run in _runs(text)), default=0))
    return f"{fence}{' '.join(text.split())}{fence}"


def _runs(text: str) -> Iterable[str]:
    return ("`" * len(part) for part in "".join(c if c == "`" else " " for c in text).split())


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_/" else "-" for c in text)


def _quoted(text: str) -> str:
    return '"' + " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"') + '"'
