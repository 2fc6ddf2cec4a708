"""Keeps the numbers on the results' pages, so that none is lost when the pages are made anew.

Writes what stands on README.md and the pages in results/ into results/numbers.json, or compares
the pages with it:

    python docs/page_numbers.py
    python docs/page_numbers.py --check

The file holds, by page and by headings ("regularized_lopt > What was found"; "" before the first),

    "tables": {caption: {"labels": [column, ...], "rows": {label: {column: cell}}}}
    "prose": [{"text": sentence, "numbers": [number, ...]}, ...]

A caption is the sentence with a colon before the table, or else "table 1", "table 2", ... A label
is what a row has in the columns that are named under "labels". Empty cells are left out, and so are
code blocks, the targets of links, the numbers of list items, and images, whose text repeats their
captions. Numbers in words count from two on. What stood on a page of `MOVED` may be anywhere on its
pages now, in other words, and with other captions.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from markdown_it import MarkdownIt  # Comes with rich.
from markdown_it.tree import SyntaxTreeNode

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
KEPT = pathlib.Path("results/numbers.json")
GUIDES = (
    *("installation", "overview", "optax", "meta_training", "data", "regularizers", "schedules"),
    *("smoothing", "surfaces", "upstream_tools", "studies", "results"),
)
MOVED = {"README.md": ("README.md", *(f"docs/{name}.md" for name in GUIDES))}
"""Pages by what they were made of."""

UNITS = "two three four five six seven eight nine"
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ROUND = "hundred thousand million"
# A digit within a name is no number: Conv_Mnist_16x32, CIFAR-10, H100. "One" is mostly a pronoun.
NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)[-+−]?\d+(?:,\d{3})*(?:\.\d+)*(?:e[-+]?\d+)?(?:x\d+)*%?"
    rf"|\b(?:(?:{TENS.replace(' ', '|')})(?:-(?:one|{UNITS.replace(' ', '|')}))?"
    rf"|{'|'.join([UNITS, TEENS, ROUND]).replace(' ', '|')})\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\W*[A-Z])")

WORDS = {
    word: str(number)
    for first, words in ((2, UNITS), (10, TEENS))
    for number, word in enumerate(words.split(), first)
}
"""Digits of numbers in words, as far as a change from one to the other is none."""

Cells = dict[str, str]  # By column.


class KeptTable(TypedDict):
    """What results/numbers.json holds of a table."""

    labels: list[str]
    rows: dict[str, Cells]


class KeptSentence(TypedDict):
    """What it holds of a sentence."""

    text: str
    numbers: list[str]


class KeptSection(TypedDict, total=False):
    """What it holds of a section."""

    tables: dict[str, KeptTable]
    prose: list[KeptSentence]


@dataclasses.dataclass
class Table:
    """A table's columns, each with a name of its own, and rows."""

    columns: list[str]
    rows: list[list[str]]

    def labels(self) -> list[str]:
        """The fewest leading columns that tell its rows apart, or the first if none do."""
        for count in range(1, len(self.columns)):
            if len({tuple(row[:count]) for row in self.rows}) == len(self.rows):
                return self.columns[:count]
        return self.columns[:1]

    def by_label(self, labels: list[str]) -> dict[str, Cells]:
        """The cells that are not empty, by what the rows have in the columns `labels`."""
        found: dict[str, Cells] = {}
        for row in self.rows:
            cells = dict(zip(self.columns, row, strict=True))
            label = " | ".join(cells.pop(column) for column in labels)
            found[distinct(label, found)] = {name: cell for name, cell in cells.items() if cell}
        return found

    def kept(self) -> KeptTable:
        """What is kept of it."""
        labels = self.labels()
        return {"labels": labels, "rows": self.by_label(labels)}


@dataclasses.dataclass
class Section:
    """What stands under a heading: sentences with numbers, and tables by their captions."""

    sentences: list[str] = dataclasses.field(default_factory=list)
    tables: dict[str, Table] = dataclasses.field(default_factory=dict)

    def kept(self) -> KeptSection:
        """What is kept of it."""
        kept = KeptSection()
        if self.tables:
            kept["tables"] = {name: table.kept() for name, table in self.tables.items()}
        if self.sentences:
            kept["prose"] = [{"text": text, "numbers": numbers(text)} for text in self.sentences]
        return kept


def numbers(text: str) -> list[str]:
    """The numbers in a text, in order."""
    return [number.lower() for number in NUMBER.findall(text)]


def in_digits(text: str) -> list[str]:
    """The numbers in a text, small ones in digits."""
    return [WORDS.get(number, number) for number in numbers(text)]


def distinct(name: str, taken: Iterable[str]) -> str:
    """The name, or "name (2)", "name (3)", ... if it is taken."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name} ({count})"
    return candidate


def plain(node: SyntaxTreeNode) -> str:
    """What a reader sees of a node, images aside."""
    if node.type in ("image", "html_inline") or node.markup == "autolink":
        return ""
    if node.type in ("softbreak", "hardbreak"):
        return " "
    if node.children:
        return "".join(map(plain, node.children))
    return "" if node.type == "inline" else node.content


def column_names(headers: list[str]) -> list[str]:
    """A name for every column: a repeated one belongs to the last before it that is not."""
    names: list[str] = []
    owner = ""
    for position, header in enumerate(headers, 1):
        name = header or f"column {position}"
        if headers.count(name) > 1:
            name = f"{owner} / {name}" if owner else name
        else:
            owner = name
        names.append(distinct(name, names))
    return names


def table_of(node: SyntaxTreeNode) -> Table:
    """The table at a node."""
    headers, *rows = (
        [plain(cell).strip() for cell in row.children]
        for part in node.children
        for row in part.children
    )
    above = ""
    for row in rows:  # An empty label repeats the one above.
        row[0] = above = row[0] or above
    return Table(column_names(headers), rows)


def blocks(node: SyntaxTreeNode) -> Iterator[SyntaxTreeNode]:
    """Headings, tables and paragraphs below a node, also those in lists."""
    for child in node.children:
        if child.type in ("heading", "table", "paragraph"):
            yield child
        else:
            yield from blocks(child)


def sections(markdown: str) -> dict[str, Section]:
    """The sections of a page by their headings, those without tables or numbers left out."""
    path: list[tuple[int, str]] = []
    section, caption, count = Section(), "", 0
    found = {"": section}
    for node in blocks(SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(markdown))):
        if node.type == "table":
            count += 1
            name = distinct(caption or f"table {count}", section.tables)
            section.tables[name] = table_of(node)
            caption = ""
            continue
        text = plain(node).strip()
        if node.type == "heading":
            level = int(node.tag[1:])
            path = [*((other, title) for other, title in path if other < level), (level, text)]
            section, count = Section(), 0
            found[distinct(" > ".join(title for _, title in path), found)] = section
        sentences = SENTENCE_END.split(text)
        caption = sentences[-1].removesuffix(":") if text.endswith(":") else ""
        section.sentences += filter(numbers, sentences)
    return {name: section for name, section in found.items() if section != Section()}


def pages(root: pathlib.Path) -> dict[str, dict[str, Section]]:
    """The sections of README.md, of the pages that it was split into, and of those in results/."""
    moved = {root / page for targets in MOVED.values() for page in targets}
    paths = moved | {*(root / "results").rglob("*.md")}
    return {
        path.relative_to(root).as_posix(): sections(path.read_text())
        for path in sorted(paths)
        if path.is_file()
    }


def written(root: pathlib.Path) -> str:
    """What results/numbers.json says of the pages as they are."""
    kept = {
        page: {name: section.kept() for name, section in found.items()}
        for page, found in pages(root).items()
    }
    return json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def differences(root: pathlib.Path) -> Iterator[str]:
    """What results/numbers.json holds and the pages lack or say otherwise."""
    kept: dict[str, dict[str, KeptSection]] = json.loads((root / KEPT).read_text())
    found = pages(root)
    for page, parts in kept.items():
        if page not in found:
            yield f"{page}: missing"
            continue
        if page in MOVED:
            targets = [found[target] for target in MOVED[page] if target in found]
            yield from moved_differences(page, parts, targets)
            continue
        for name, part in parts.items():
            where = f"{page}: {name}" if name else page
            if name in found[page]:
                yield from section_differences(where, part, found[page][name])
            else:
                yield f"{where}: missing"


def moved_differences(
    page: str, kept: dict[str, KeptSection], targets: list[dict[str, Section]]
) -> Iterator[str]:
    """The numbers that were kept of a page and are on none of those that it was split into.

    A table is looked for by its columns and rows. The numbers of one that was taken apart may be in
    prose and in new tables, and those of prose, too; other texts in cells may have changed.
    """
    sections = [section for target in targets for section in target.values()]
    sentences = [text for section in sections for text in section.sentences]
    new = [table for section in sections for table in section.tables.values()]
    prose: list[KeptSentence] = []
    for name, part in kept.items():
        prose += part.get("prose", [])
        for caption, table in part.get("tables", {}).items():
            where = f"{page}: {name}: {caption}"
            if found := [one for one in new if alike(table, one)]:
                told = [[*table_differences(where, table, one, numbers)] for one in found]
                new.remove(found[told.index(min(told, key=len))])
                yield from min(told, key=len)
            else:
                cells = (text for row in table["rows"].values() for text in row.values())
                prose += [{"text": text, "numbers": numbers(text)} for text in cells]
    cells = [text for table in new for row in table.rows for text in row]
    yield from prose_differences(page, prose, sentences + cells)


def alike(kept: KeptTable, found: Table) -> bool:
    """Whether it has the columns of a table that was kept, and a row of it at least."""
    columns = {*kept["labels"]}.union(*kept["rows"].values())
    return columns <= {*found.columns} and bool({*kept["rows"]} & {*found.by_label(kept["labels"])})


def section_differences(where: str, kept: KeptSection, found: Section) -> Iterator[str]:
    """What was kept of a section and is not in it."""
    for caption, table in kept.get("tables", {}).items():
        if caption in found.tables:
            yield from table_differences(f"{where}: {caption}", table, found.tables[caption])
        else:
            yield f"{where}: {caption}: missing"
    yield from prose_differences(where, kept.get("prose", []), found.sentences)


def table_differences(
    where: str, kept: KeptTable, found: Table, compared: Callable[[str], object] = str
) -> Iterator[str]:
    """What was kept of a table and is not in it, wherever its rows and columns stand now.

    Of two cells, only what `compared` makes of them is compared.
    """
    columns = {column for cells in kept["rows"].values() for column in cells}
    gone = sorted({*kept["labels"], *columns} - {*found.columns})
    yield from (f"{where}: column {column}: missing" for column in gone)
    if {*kept["labels"]} & {*gone}:
        return
    rows = found.by_label(kept["labels"])
    for label, cells in kept["rows"].items():
        if label not in rows:
            yield f"{where}: row {label}: missing"
            continue
        for column, cell in cells.items():
            now = rows[label].get(column, "nothing")
            if column not in gone and compared(now) != compared(cell):
                yield f"{where}: {label}: {column}: was {cell}, is {now}"


def prose_differences(where: str, kept: list[KeptSentence], sentences: list[str]) -> Iterator[str]:
    """The numbers that were kept of prose and are not in it, in whatever words."""
    left = Counter(sentences) - Counter(sentence["text"] for sentence in kept)
    lost = Counter(sentence["text"] for sentence in kept) - Counter(sentences)
    by_words = {NUMBER.sub("#", text): text for text in left}
    reworded = []
    for text in lost.elements():
        now = by_words.get(NUMBER.sub("#", text))
        if now and left[now]:
            left[now] -= 1
            was, new = (", ".join(numbers(one)) for one in (text, now))
            yield f"{where}: was {was}, is {new}: {short(text)}"
        else:
            reworded.append(text)
    pool = Counter(number for text in left.elements() for number in in_digits(text))
    for text in reworded:
        wanted = Counter(in_digits(text))
        if missing := wanted - pool:
            yield f"{where}: {', '.join(missing.elements())} missing: {short(text)}"
        pool -= wanted


def short(text: str) -> str:
    """The beginning of a text."""
    return textwrap.shorten(text, 100, placeholder=" ...")


def main(arguments: list[str] | None = None, root: pathlib.Path = REPOSITORY) -> int:
    """Writes results/numbers.json or compares the pages with it; 1 if they lack something."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="print what the pages lack or say otherwise"
    )
    if not parser.parse_args(arguments).check:
        (root / KEPT).write_text(written(root))
        return 0
    lines = list(differences(root))
    print(*lines, sep="\n", end="\n" * bool(lines))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
