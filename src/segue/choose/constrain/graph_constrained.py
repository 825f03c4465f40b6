"""Graph-constrained decoding: all legal outputs form one word graph, and the answers are its k shortest paths.

1. The legal outputs, a line each of a file, are folded into the smallest graph that has them as its paths; a tag before
   a line is the first edge. Which tag comes is the model's choice (polyglot), or it is fixed (monolingual).
2. An edge costs -log p of its token behind what was written; the last edge that of an end of text.
3. Exact: a best-first search over prefixes. Costs only grow, so that the first k whole outputs that come up are the k
   likeliest of all.
4. Graph, as in the paper: nodes in topological order; each keeps the cheapest way to it with the model's state, from
   which the costs of its edges are computed. One shortest path, exact where costs do not depend on the way.
5. Graph, k paths (Yen 1971): from every node of the last path, without the edges that were taken there before behind
   the same beginning, the shortest path is computed anew; the cheapest of all these candidates is the next path.
6. What was read once is kept: a search asks the model only for beginnings that no earlier one went through.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.hypothesis import deliver
from segue.choose.parts.legal import END, Legal, Prefix
from segue.choose.parts.outputs import listed
from segue.choose.parts.wordgraph import levels
from segue.data import ConstraintError
from segue.models.constraint import Constraint, constraint
from segue.models.run import Decoder, Run

SEARCHES = ("exact", "graph")
BOUNDARIES = 2  # symbols that the paper adds to a length
Way = tuple[float, Prefix]  # cost so far, and the tokens


@dataclass(frozen=True)
class GraphConstrained:
    """Only what is on the list comes out, the likeliest first."""

    card = Card(
        paper=Paper(id="1803.06966", title="Polyglot Semantic Parsing in APIs", year=2018),
        claim=Claim(
            value=None,
            unit="none",
            baseline="monolingual models without a graph",
            setting="signatures of software components, GeoQuery, sports: the best at its time",
        ),
        exact=(SameTarget(target="graph_constrained"),),
        departs="the model is whatever is loaded: no tagged training, no copying, no reranker, no beam over edges; an "
        "exact search, which is the default; costs are the model's own unless softmax=labels. A listed output is "
        "legal in the one way in which the tokenizer writes it, a grammar's texts in all of them",
        check="constrained",
    )

    file: str = ""  # a legal output a line, "tag<TAB>output" where it has a tag; empty: what the request allows
    tag: str = ""  # only outputs with this tag; empty for all
    paths: int = 5  # k: outputs that are found, best first
    search: str = "exact"  # exact (the likeliest, by a best-first search) or graph (the paper's shortest paths)
    softmax: str = "all"  # an edge's share among all tokens, or (labels, the paper's) among those that leave its node
    normalise: bool = False  # divide a path's cost by its length and 2, as the paper does
    together: int = 4  # prefixes that the exact search reads in one forward
    reads: int = 8192  # prefixes that it reads at most: what it has found by then are the best
    held: int = 8  # caches of prefixes that are kept; others are read again

    def __post_init__(self) -> None:
        for name in ("paths", "together", "reads", "held"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        if self.search not in SEARCHES:
            raise ValueError(f"search={self.search!r} is not allowed: {' or '.join(SEARCHES)}")
        if self.softmax not in ("all", "labels"):
            raise ValueError(f"softmax={self.softmax!r} is not allowed: all or labels")
        if self.tag and not self.file:
            raise ValueError(f"tag={self.tag!r} chooses among the lines of a file: give file=FILE")

    @property
    def sequences(self) -> int:
        return self.held + 1

    def run(self, run: Run) -> Decoder[None]:
        legal = Legal(run, self._constraint(run), self.held, labels=self.softmax == "labels")
        yield from legal.open()
        search = self._exact if self.search == "exact" else self._shortest
        found = yield from search(legal)
        legal.close()
        run.stats.note = f"{len(legal.places)} beginnings read"
        deliver(run, [legal.hypothesis(prefix, -cost) for cost, prefix in found])
        run.finish_reason = "stop"  # an output that fills max_tokens is whole all the same

    def _constraint(self, run: Run) -> Constraint:
        if self.file:
            if run.constraint is not None:
                raise ConstraintError("two constraints: give file=FILE, or those of the request")
            settings = replace(run.settings, constraint=listed(run, self.file, self.tag))
            own = constraint(settings, run.lm, run.max_tokens)
            assert own is not None
            own.name = f"file={self.file}" + (f", tag={self.tag}" if self.tag else "")
            run.constraint = run.target.constraint = own
        if run.constraint is None:
            raise ConstraintError(
                "graph_constrained needs a list of legal outputs: give file=FILE with one a line, or the request's "
                "choices, grammar, regex, json_schema or constraint"
            )
        return run.constraint

    def _worth(self, cost: float, length: int) -> float:
        """What a path of so many tokens is ranked by, the smaller the better."""
        return cost / (length + BOUNDARIES) if self.normalise else cost

    def _exact(self, legal: Legal) -> Decoder[list[Way]]:
        """The k best by a best-first search; several places are read at a time."""
        heap: list[tuple[float, float, Prefix, bool]] = [(0.0, 0.0, (), False)]  # bound, cost, tokens, whether whole
        found: list[Way] = []
        while heap and len(found) < self.paths:
            if len(legal.places) >= self.reads:
                if found:
                    break
                raise ConstraintError(
                    f"{legal.constraint.name}: no output was settled as the likeliest within reads={self.reads} "
                    "beginnings, there are too many of them: raise it, constrain further, or take a search like beam"
                )
            unread: list[tuple[float, float, Prefix, bool]] = []
            while heap and len(unread) < self.together and len(found) < self.paths:
                item = bound, cost, prefix, whole = heapq.heappop(heap)
                if whole and unread:  # something cheaper may come from these
                    unread.append(item)
                    break
                if whole:
                    found.append((bound, prefix))
                elif prefix not in legal.places:
                    unread.append(item)
                else:
                    for token, step in legal.places[prefix].items():
                        after = cost - _checked(step.score)
                        if token == END:
                            heapq.heappush(heap, (self._worth(after, len(prefix)), after, prefix, True))
                        else:  # the longest output behind it would make its cost count least
                            longer = (*prefix, token)
                            heapq.heappush(heap, (self._worth(after, legal.longest(longer)), after, longer, False))
            yield from legal.read([prefix for _, _, prefix, whole in unread if not whole])
            for item in unread:
                heapq.heappush(heap, item)
        return found

    def _shortest(self, legal: Legal) -> Decoder[list[Way]]:
        """The k shortest paths of the graph (Yen 1971), from deviations of accepted paths (Lawler 1972)."""
        order = levels(legal.constraint)
        accepted: list[Prefix] = []
        found: list[Way] = []
        begun = yield from self._path(legal, order, (0.0, ()), frozenset())
        candidates = [(*begun, 0)] if begun is not None else []  # with the place where they leave an accepted path
        seen = {begun[1]} if begun is not None else set()
        while candidates and len(found) < self.paths:
            worth, path, deviation = heapq.heappop(candidates)
            found.append((worth, path))
            accepted.append(path)
            cost = -sum(legal.places[path[:i]][path[i]].score for i in range(deviation))
            for spur in range(deviation, len(path) + 1):
                root = path[:spur]
                banned = frozenset((*p, END)[spur] for p in accepted if p[:spur] == root)
                another = yield from self._path(legal, order, (cost, root), banned)
                if another is not None and another[1] not in seen:
                    seen.add(another[1])
                    heapq.heappush(candidates, (*another, spur))
                if spur < len(path):
                    cost -= legal.places[root][path[spur]].score
        return found

    def _path(self, legal: Legal, order: dict[object, int], root: Way, banned: frozenset[int]) -> Decoder[Way | None]:
        """The shortest path on from a root that does not leave it by a banned edge; its rank and tokens."""
        state = legal.constraint.state
        best: dict[object, Way] = {state(root[1]): root}
        waiting = set(best)
        ended: Way | None = None
        while waiting:
            level = min(order[node] for node in waiting)
            nodes = [node for node in waiting if order[node] == level]  # no edge leads from one to another
            waiting.difference_update(nodes)
            yield from legal.read([best[node][1] for node in nodes])
            for cost, prefix in sorted(best[node] for node in nodes):
                for token, step in legal.places[prefix].items():
                    if prefix == root[1] and token in banned:
                        continue
                    if token == END:
                        whole = self._worth(cost - step.score, len(prefix)), prefix
                        ended = whole if ended is None else min(ended, whole)
                        continue
                    way = cost - step.score, (*prefix, token)
                    node = state(way[1])
                    best[node] = min(best.get(node, way), way)
                    waiting.add(node)
        return ended


def _checked(score: float) -> float:
    """A score that is none of a probability makes a path cheaper as it grows, and no order of search is right."""
    if score > 1e-6:
        raise ValueError(
            "the request's logit_bias or penalties lift a token above probability 1, where the first outputs found "
            "need not be the best: leave them out, or take softmax=labels"
        )
    return score
