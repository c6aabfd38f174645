"""What the tests read out of a page."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = (
    *("<script>alert(1)</script>", "../x", "=cmd", "[red]", "\x1b[31mESC", "x" * 300, "\N{BUTTERFLY} emoji"),
    *("line\nbreak", "</script><img src=x onerror='window.__hacked=1'>", "\u202eevil", "\"quoted'", "{{ 7 * 7 }}"),
)
HARMLESS = tuple(f"name {number} ".ljust(len(name), "h") for number, name in enumerate(HOSTILE))


class Page(HTMLParser):
    """A page's tags with their attributes, its texts, and what a browser would fetch.

    Attributes:
        tags: ``(tag, names of its attributes)`` each.
        names: Text of every element of class ``name``.
        texts: Tag -> text of each element.
        cells: Of the table of arms: rows of ``(text, data-sort)``.
        links: Values of every ``src``, ``href`` and ``xlink:href``.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[tuple[str, tuple[str, ...]]] = set()
        self.names: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.cells: list[list[tuple[str, str]]] = []
        self.links: list[str] = []
        self.metas: dict[str, str] = {}
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add((tag, tuple(sorted(given))))
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag == "meta":
            self.metas[given.get("http-equiv") or given.get("name") or "charset"] = given.get("content", "")
        if tag == "tr":
            self.cells.append([])
        if tag not in ("meta", "link", "img", "input", "br", "wbr"):
            self._open.append((tag, given, []))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_data(self, data):
        for _, _, parts in self._open:
            parts.append(data)

    def handle_endtag(self, tag):
        opened, given, parts = self._open.pop()
        assert opened == tag, f"<{opened}> closed by </{tag}>"
        text = "".join(parts)
        self.texts.setdefault(tag, []).append(text)
        if tag == "bdi":
            self.names.append(text)
        if tag in ("td", "th") and "data-sort" in given:
            self.cells[-1].append((text.strip(), given["data-sort"] or ""))
