"""Lists in one cell of a table, as people, JSON, Python and pandas write them."""

import ast
import io
import json
import tokenize

Unreadable = (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)


def read_cell(cell: str) -> object:
    """Return the choices in a cell: a list or an object if it is one, else the texts between `|`.

    Lists may be written as in JSON, as in Python, or as in NumPy (without commas), which is how
    pandas writes the lists of a Parquet file into a table.
    """
    text = cell.strip()
    if (text[:1], text[-1:]) not in {("[", "]"), ("{", "}")}:
        return cell.split("|")
    for read in (json.loads, _without_commas, _python):
        try:
            found: object = read(text)
        except Unreadable:
            continue  # in brackets, but not in this notation
        return found
    return cell.split("|")


def _without_commas(text: str) -> list[object]:
    """Read ['a' "b's"], which Python would join into one text."""
    tokens = [*tokenize.generate_tokens(io.StringIO(text).readline)]
    kept = [token for token in tokens if token.string.strip()]
    texts = [t.string for t in kept if t.type in (tokenize.STRING, tokenize.NUMBER)]
    if len(texts) != len(kept) - 2 or len(texts) < 2:
        raise ValueError("commas, or something else than texts and numbers")
    return [ast.literal_eval(written) for written in texts]


class _Arrays(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "array" and node.args:
            return node.args[0]  # array([…], dtype=object)
        return node


def _python(text: str) -> object:
    found: object = ast.literal_eval(_Arrays().visit(ast.parse(text, mode="eval")))
    return found
