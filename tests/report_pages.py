"""A page of a report, as a browser would take it apart."""

from html.parser import HTMLParser
from pathlib import Path

from ser_lightning.report.page import write_report


class Page(HTMLParser):
    """What a browser would make of a page: tables by heading, tags with their attributes, text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.tables, self.headings, self.text, self.heading = [], {}, [], "", ""
        self._open = None
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag == "h2":
            self.heading = ""
        if tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        if tag in ("td", "th"):
            self.tables[self.heading][-1].append("")
        if tag in ("br", "small"):
            self.tables[self.heading][-1][-1] += " "

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        self.text += data
        if self._open == "h2":
            self.heading += data
            self.headings.append(data)
        if self._open in ("td", "th", "small"):
            self.tables[self.heading][-1][-1] += data


def page_of(*runs, to="page.html"):
    write_report([Path(run) for run in runs], Path(to))
    return Page(to)
