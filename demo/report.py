"""A program of the demonstration's machine: it runs with the restored tree as its root, its interpreter included."""

import collections
import csv
import decimal
import email.message
import html
import http.server
import json
import logging.handlers
import sqlite3
import sys
import xml.dom.minidom

LIMIT = 5


def main() -> None:
    """Print the items that were ordered most often, from the newest orders."""
    database = sqlite3.connect("file:/srv/orders.sqlite?mode=ro", uri=True)
    pieces: collections.Counter[str] = collections.Counter()
    for item, count in database.execute("SELECT item, pieces FROM orders ORDER BY number DESC LIMIT 10000"):
        pieces[item] += count
    best = ", ".join(f"{item} {count}" for item, count in pieces.most_common(LIMIT))
    modules = (csv, decimal, email.message, html, http.server, json, logging.handlers, xml.dom.minidom)
    print(f"Python {sys.version.split()[0]} with {len(sys.modules)} modules ({len(modules)} asked for): best items {best}")


main()
