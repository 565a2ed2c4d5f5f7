"""Tables as text."""

from collections.abc import Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    A table for a terminal, whose columns are aligned.

    :param head: titles of the columns; a column without any text is left out
    :param rows: of the table, with as many cells
    """
    filled = [index for index in range(len(head)) if any(row[index] for row in rows)]
    table = [[row[index] for index in filled] for row in (head, *rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(filled))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
