"""Small faults of a syntax tree: a node in, the texts that could stand in its place out.

Not mutated, by rule: docstrings, annotations, decorators, imports, assertions, f-strings and the
arguments of what is raised (messages; tests match them, but not letter by letter), prose, keys of
dictionaries and subscripts, and `strict=`, which guards invariants of our own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
OPPOSITES = {
    word: other
    for pair in (
        "min max",
        "any all",
        "minimum maximum",
        "floor ceil",
        "amin amax",
        "argmin argmax",
    )
    for word, other in (pair.split(), reversed(pair.split()))
}
IDENTITIES = {"abs", "sorted", "reversed", "float", "int", "bool", "round", "sqrt", "exp", "log"}
IDENTITIES |= {"array", "asarray", "ascontiguousarray", "rint", "deepcopy"}
SAME_METHODS = {"copy", "astype", "clip", "resolve", "strip", "lower", "clone", "transpose"}
KEYWORDS = {"axis", "dtype", "keepdims", "copy", "key", "reverse", "default", "timeout", "initial"}
SYMMETRIC = {"max", "min", "maximum", "minimum", "array_equal", "logical_and", "logical_or", "zip"}


@dataclass(frozen=True, slots=True)
class Change:
    """A node's span in the source and the text that takes its place."""

    operator: str
    node: ast.AST
    text: str


def changes(tree: ast.Module) -> Iterator[Change]:
    """Every change, in the order of the source."""
    yield from _walk(tree)


def _walk(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.stmt):
        yield from _statement(node)
    if isinstance(node, ast.expr):
        yield from _expression(node)
    for child in _mutable_children(node):
        yield from _walk(child)


def _mutable_children(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Raise() | ast.JoinedStr():
            return
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.AnnAssign():
            yield from (part for part in (node.value,) if part is not None)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from (d for d in node.args.defaults + node.args.kw_defaults if d is not None)
            yield from node.body
        case ast.ClassDef():
            yield from node.body
        case ast.Dict():
            yield from (k for k in node.keys if k is not None and not _is_string(k))
            yield from node.values
        case ast.Subscript():
            yield node.value
            if not _is_string(node.slice) and not _is_alias(node):
                yield node.slice
        case ast.Call():
            yield node.func
            yield from node.args
            yield from (k.value for k in node.keywords if k.arg != "strict")
        case _:
            yield from ast.iter_child_nodes(node)


def _statement(node: ast.stmt) -> Iterator[Change]:
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield Change("drop the statement", node, "pass")
        case ast.Continue() | ast.Break():
            yield Change("drop the statement", node, "pass")
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield Change("drop the statement", node, "pass")
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield Change("return None", node, "return None")
    if isinstance(node, ast.If | ast.While) and not _has_own_change(node.test):
        yield _negated(node.test)


def _expression(node: ast.expr) -> Iterator[Change]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARE:
            other = ast.Compare(node.left, [COMPARE[type(op)]()], node.comparators)
            yield _replaced("comparison", node, other)
        case ast.Compare(ops=[first, *rest]) if type(first) in COMPARE:
            ops = [COMPARE[type(first)](), *rest]
            yield _replaced("comparison", node, ast.Compare(node.left, ops, node.comparators))
            if type(rest[-1]) in COMPARE:
                ops = [first, *rest[:-1], COMPARE[type(rest[-1])]()]
                yield _replaced("comparison", node, ast.Compare(node.left, ops, node.comparators))
        case ast.BoolOp():
            other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield _replaced("and, or", node, ast.BoolOp(other_op, node.values))
            for left_out in node.values:
                kept = [value for value in node.values if value is not left_out]
                rest_of = kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
                yield _replaced("condition left out", node, rest_of)
        case ast.UnaryOp(op=ast.Not()):
            yield _replaced("not", node, node.operand)
        case ast.UnaryOp(op=ast.USub()) if not isinstance(node.operand, ast.Constant):
            yield _replaced("sign", node, node.operand)
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _joins_text(node):
            other = ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
            yield _replaced("arithmetic", node, other)
        case ast.IfExp():
            yield _replaced("branches", node, ast.IfExp(node.test, node.orelse, node.body))
        case ast.Constant():
            yield from _constant(node)
        case ast.Call():
            yield from _call(node)
        case ast.GeneratorExp() | ast.ListComp() | ast.SetComp() | ast.DictComp():
            for part in node.generators:
                for test in part.ifs:
                    if not _has_own_change(test):
                        yield _negated(test)


def _constant(node: ast.Constant) -> Iterator[Change]:
    match node.value:
        case bool():
            yield Change("constant", node, repr(not node.value))
        case int():
            yield Change("constant", node, repr(node.value + 1))
        case float():
            yield Change("constant", node, repr(2 * node.value if node.value else 1.0))
        case str() if node.value and " " not in node.value:
            yield Change("constant", node, repr(node.value + "_"))


def _call(node: ast.Call) -> Iterator[Change]:
    name = _name(node.func)
    if name in OPPOSITES:
        yield _replaced("opposite", node, _renamed(node, OPPOSITES[name]))
    one_argument = len(node.args) == 1 and not isinstance(node.args[0], ast.Starred)
    if name in IDENTITIES and one_argument and not isinstance(node.args[0], ast.GeneratorExp):
        yield _replaced("call left out", node, node.args[0])
    if name in SAME_METHODS and isinstance(node.func, ast.Attribute):
        yield _replaced("call left out", node, node.func.value)
    if len(node.args) >= 2 and name not in SYMMETRIC:
        first, second, *rest = node.args
        different = ast.dump(first) != ast.dump(second)
        if different and not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            swapped = ast.Call(node.func, [second, first, *rest], node.keywords)
            yield _replaced("arguments swapped", node, swapped)
    for keyword in node.keywords:
        if keyword.arg in KEYWORDS:
            kept = [k for k in node.keywords if k is not keyword]
            yield _replaced("keyword left out", node, ast.Call(node.func, node.args, kept))


def _replaced(operator: str, node: ast.AST, other: ast.expr) -> Change:
    return Change(operator, node, f"({ast.unparse(other)})")


def _negated(test: ast.expr) -> Change:
    return Change("condition", test, f"(not ({ast.unparse(test)}))")


def _has_own_change(test: ast.expr) -> bool:
    """Whether the test's own operator has an opposite already."""
    if isinstance(test, ast.Compare):
        return len(test.ops) == 1 and not isinstance(test.ops[0], ORDERED)
    return isinstance(test, ast.UnaryOp | ast.BoolOp)


def _name(function: ast.expr) -> str:
    match function:
        case ast.Name():
            return function.id
        case ast.Attribute():
            return function.attr
    return ""


def _renamed(node: ast.Call, name: str) -> ast.Call:
    match node.func:
        case ast.Attribute():
            return ast.Call(ast.Attribute(node.func.value, name), node.args, node.keywords)
    return ast.Call(ast.Name(name), node.args, node.keywords)


def _joins_text(node: ast.BinOp) -> bool:
    """String formatting, and paths joined with `/`."""
    sides = (node.left, node.right)
    return any(isinstance(side, ast.JoinedStr) or _is_string(side) for side in sides)


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_alias(node: ast.Subscript) -> bool:
    return _name(node.value) in {"Literal", "Callable", "Mapping", "Sequence", "NDArray", "dict"}
