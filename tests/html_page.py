"""A page of ours: every part closed, and nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any


def check_whole(page: str) -> None:
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"<script|<link|@import|(?:src|href)=[\"'](?!#|data:)", page)


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "path", "use", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use"):
            assert self.open.pop() == tag
