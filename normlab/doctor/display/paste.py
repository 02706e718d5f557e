"""Lines of code that fit a width and can still be pasted."""

import ast
import io
import tokenize

__all__ = ["lines"]

_INDENT = "    "


def lines(code: str, width: int) -> list[str]:
    """Break code where Python lets a line end: between tokens inside brackets, and before a comment.

    Args:
        code: Code; anything that is no Python stays as it is.
        width: Columns; a line that can be broken nowhere is longer.

    >>> lines("BatchNorm(momentum=0.9, use_running_average=not train)", 30)
    ['BatchNorm(momentum=0.9,', '    use_running_average=not train)']
    """
    whole = code.strip("\n").split("\n")
    broken = [piece for line in whole for piece in (_broken(line, width) if len(line) > width else [line])]
    return broken if _same("\n".join(broken), "\n".join(whole)) else whole


def _broken(line: str, width: int) -> list[str]:
    """Break a line at the last place that fits, and the rest again."""
    pieces, start, indent = list[str](), 0, ""
    places = _places(line)
    while len(indent) + len(line) - start > width:
        fitting = [place for place in places if start < place <= start + width - len(indent)]
        later = [place for place in places if place > start]
        if not later:
            break
        end = fitting[-1] if fitting else later[0]
        pieces.append(f"{indent}{line[start:end].strip()}" if start else line[:end].rstrip())
        start, indent = end, _INDENT
    return [*pieces, f"{indent}{line[start:].strip()}" if start else line]


def _places(line: str) -> list[int]:
    """List the columns where a line may end: inside brackets, behind commas and brackets, and before a comment."""
    found, depth, quoted = list[int](), 0, 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            kind = tokenize.tok_name[token.type]
            quoted += (kind == "FSTRING_START") - (kind == "FSTRING_END")
            depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
            if kind == "COMMENT":
                found.append(token.start[1])
            elif token.string in (",", "(", "[", "{") and depth and not quoted:
                found.append(token.end[1])
    except (tokenize.TokenError, SyntaxError):  # no Python
        return []
    return [place for place in found if line[:place].strip() and line[place:].strip()]


def _same(broken: str, whole: str) -> bool:
    try:
        return ast.dump(ast.parse(broken)) == ast.dump(ast.parse(whole))
    except (SyntaxError, ValueError):
        return False
