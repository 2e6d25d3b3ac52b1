"""Who mixes with whom, and how much: symmetric weights whose rows sum to 1, whatever the graph.

Metropolis-Hastings weights (Xiao and Boyd, "Fast linear iterations for distributed averaging", Systems and
Control Letters 53, 2004, section 4.2): W_ij = 1 / (1 + max(d_i, d_j)) for neighbours with d_i and d_j
neighbours each. An end needs to know no more than that of its neighbours. On a ring it is the 1/3 of RD-PSGD,
on a complete graph 1/n.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

Edge = tuple[int, int]  # lower node number first


def ring(nodes: Sequence[int]) -> frozenset[Edge]:
    """Joins each node with the next, and the last with the first. Two nodes have one edge, one has none."""
    return _edges(zip(nodes, [*nodes[1:], *nodes[:1]], strict=True))


def planes(nodes: Sequence[int], columns: int) -> frozenset[Edge]:
    """Makes a ring of every `columns` nodes, and no edge between. Raises ValueError if one is not full."""
    return frozenset().union(*(ring(row) for row in _rows(nodes, columns)))


def torus(nodes: Sequence[int], columns: int) -> frozenset[Edge]:
    """Makes each row of `columns` nodes and each column a ring. Raises ValueError if a row is not full."""
    rows = _rows(nodes, columns)
    lines = [*rows, *(list(column) for column in zip(*rows, strict=True))]
    return frozenset().union(*(ring(line) for line in lines))


def star(nodes: Sequence[int]) -> frozenset[Edge]:
    """Joins the first node with each of the others."""
    return _edges((nodes[0], other) for other in nodes[1:])


def complete(nodes: Sequence[int]) -> frozenset[Edge]:
    return _edges((a, b) for a in nodes for b in nodes)


def metropolis(edges: Iterable[Edge]) -> dict[int, dict[int, float]]:
    """Returns Metropolis-Hastings weights W_ij by i and its neighbours j; what a row lacks to 1 is W_ii."""
    edges = frozenset(edges)
    ends = [end for edge in edges for end in edge]
    degree = {node: ends.count(node) for node in ends}
    weights: dict[int, dict[int, float]] = {node: {} for node in sorted(degree)}
    for a, b in sorted(edges):
        weights[a][b] = weights[b][a] = 1 / (1 + max(degree[a], degree[b]))
    return weights


def connected(edges: Iterable[Edge], nodes: Collection[int]) -> bool:
    """Whether edges lead from any node to any other; else the models never agree."""
    parts = [{node} for node in nodes]
    for edge in edges:
        joined = [part for part in parts if part.intersection(edge)]
        parts = [part for part in parts if part not in joined] + [set().union(*joined)]
    return len(parts) <= 1


def _rows(nodes: Sequence[int], columns: int) -> list[Sequence[int]]:
    if columns < 1 or len(nodes) % columns:
        raise ValueError(f"{len(nodes)} nodes do not fill rows of {columns}")
    return [nodes[at : at + columns] for at in range(0, len(nodes), columns)]


def _edges(pairs: Iterable[tuple[int, int]]) -> frozenset[Edge]:
    return frozenset((min(pair), max(pair)) for pair in pairs if pair[0] != pair[1])
