"""Which models and signals of params.yaml are made from which: checked and sorted."""

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from firstkd.models.settings import ModelSettings
from firstkd.section import listed
from firstkd.signals.kinds import AnySignal


class Node(NamedTuple):
    section: str
    """`models` or `signals`."""
    name: str


class Lineage:
    def __init__(
        self, models: Mapping[str, ModelSettings], signals: Mapping[str, AnySignal]
    ) -> None:
        """Raises ValueError, naming the key, for anything that does not exist or does not fit."""
        self._models, self._signals = models, signals
        for key, section, name in self._mentions():
            known = models if section == "models" else signals
            if name not in known:
                raise ValueError(
                    f"{key}: there is no {name!r} among {section}; "
                    f"allowed: {listed(set(known)) or 'none'}"
                )
        for key, problem in self._misfits():
            raise ValueError(f"{key}: {problem}")
        try:
            self.order = self._sorted()
        except CycleError as error:
            cycle = " → ".join(f"{node.section}.{node.name}" for node in reversed(error.args[1]))
            raise ValueError(f"a cycle: {cycle}; one of them must come first") from error

    def reads(self, node: Node) -> list[Node]:
        """Return the models and signals that a model or signal is made from."""
        if node.section == "models":
            model = self._models[node.name]
            return [
                *(Node("models", name) for name in model.init.models),
                *(Node("signals", name) for name in model.signals),
            ]
        signal = self._signals[node.name]
        return [
            *(Node("models", name) for name in signal.models),
            *(Node("signals", name) for name in signal.signals),
        ]

    def peers(self, model: str) -> list[str]:
        """Return the models that are trained together with a model, itself included.

        They learn from one another's live signals, directly or in a ring.
        """
        return [
            name
            for name in self._models
            if name == model or (name in self._watches(model) and model in self._watches(name))
        ]

    def _watches(self, model: str) -> set[str]:
        """Return the models that run beside a model's training and, in turn, beside theirs."""
        found: set[str] = set()
        waiting = [model]
        while waiting:
            signals = [self._signals[name] for name in self._models[waiting.pop()].signals]
            new = {of for signal in signals if signal.is_live for of in signal.models} - found
            found |= new
            waiting += new
        return found

    @property
    def stored(self) -> dict[str, AnySignal]:
        """Return the signals that have a stage and a store: all except live ones."""
        return {name: signal for name, signal in self._signals.items() if not signal.is_live}

    @property
    def recalibrated(self) -> dict[str, AnySignal]:
        """Return the signals to which recalibrations are fitted."""
        return {name: signal for name, signal in self._signals.items() if signal.is_recalibrated}

    @property
    def roots(self) -> list[str]:
        """Return the models that are not made from others."""
        return [name for name, model in self._models.items() if not model.init.models]

    def teachers(self, model: str) -> list[str]:
        """Return the models whose signals a model learns from, pooled signals included.

        Its peers are not its teachers. A model made of others without learning has theirs.
        """
        if (settings := self._models[model]).learn is None:
            of_parts = [name for part in settings.init.models for name in self.teachers(part)]
            return list(dict.fromkeys(of_parts))
        peers = self.peers(model)
        return [name for name in self._run_for(settings.signals) if name not in peers]

    def learns(self, model: str) -> bool:
        """Whether a model, or one that it is made from, learns something."""
        settings = self._models[model]
        return settings.learn is not None or any(map(self.learns, settings.init.models))

    def read_with(self, signal: str) -> str:
        """Return the model whose tokenizer encodes the examples of a signal."""
        return self._run_for([signal])[0]

    def root(self, model: str) -> str:
        """Return the model, made elsewhere, that a model descends from: they share a tokenizer."""
        return self._line(model)[-1]

    def cuts(self, model: str, other: str) -> list[str] | None:
        """Return the models at which `model` lost layers that `other` still has, first to last.

        None if the two have no common ancestor, or if `other` has lost layers since.
        """
        ours, theirs = (self._line(name, of_weights=True) for name in (model, other))
        shared = next((name for name in ours if name in theirs), None)
        if shared is None or any(map(self._is_cut, theirs[: theirs.index(shared)])):
            return None
        return [name for name in reversed(ours[: ours.index(shared)]) if self._is_cut(name)]

    def _line(self, model: str, of_weights: bool = False) -> list[str]:
        """Return a model and its ancestors, or only those that its weights come from."""
        line = [model]
        while origins := self._models[line[-1]].init.models:
            if of_weights and self._models[line[-1]].init.starts_anew:
                break
            line.append(origins[0])
        return line

    def _is_cut(self, model: str) -> bool:
        return self._models[model].init.cuts_layers

    def _run_for(self, signals: Sequence[str]) -> list[str]:
        found: list[str] = []
        waiting = [*signals]
        while waiting:
            signal = self._signals[waiting.pop(0)]
            found += signal.models
            waiting += signal.signals
        return list(dict.fromkeys(found))

    def _mentions(self) -> Iterator[tuple[str, str, str]]:
        """Yield the key, section and name of every reference."""
        for name, model in self._models.items():
            for other in model.init.models:
                yield f"models.{name}.init.{model.init.origin}", "models", other
            for term_name, term in (model.learn or {}).items():
                if term.signal is not None:
                    yield f"models.{name}.learn.{term_name}.from", "signals", term.signal
            for other in model.keep.signals if model.keep else ():
                yield f"models.{name}.keep", "signals", other
        for name, signal in self._signals.items():
            for other in signal.models:
                yield f"signals.{name}.of", "models", other
            for other in signal.signals:
                yield f"signals.{name}.of", "signals", other

    def _misfits(self) -> Iterator[tuple[str, str]]:
        for name, model in self._models.items():
            for other in model.init.models:
                if self._models[other].init.is_served:
                    served = f"{other!r} is behind a server, and no other model can be made from it"
                    yield f"models.{name}.init.{model.init.origin}", served
        for name, signal in self._signals.items():
            if problem := signal.check(self._signals, self._models):
                yield f"signals.{name}", problem
            for other in signal.models:
                if problem := self._models[other].init.cannot_show(signal):
                    yield f"signals.{name}.of", f"{other!r} {problem}"
            for other in signal.signals:
                if self._signals[other].is_live:
                    live = f"{other!r} is live: it stores nothing to combine"
                    yield f"signals.{name}.of", live
        for name, model in self._models.items():
            for term_name, term in (model.learn or {}).items():
                if term.signal and (problem := term.misfit(self._signals[term.signal])):
                    yield f"models.{name}.learn.{term_name}", problem
            peers = self.peers(name)
            for key, problem in model.misfits(self._signals, peers):
                yield f"models.{name}.{key}", problem
            for other in peers:
                mutual = [s for s, of in self._signals.items() if {*of.models} & {name, other}]
                for key, problem in model.misfits_beside(other, self._models[other], mutual):
                    yield f"models.{name}{key}", problem

    def _sorted(self) -> list[Node]:
        """Return all nodes, each after those it reads: sources first, trainings last.

        So a problem with a source or an initial model shows before the first long training.
        """
        nodes = [
            *(Node("models", name) for name in self._models),
            *(Node("signals", name) for name in self._signals),
        ]
        sorter = TopologicalSorter({node: self._waits_for(node) for node in nodes})
        sorter.prepare()
        order: list[Node] = []
        ready: list[Node] = []

        def rank(node: Node) -> tuple[int, int]:
            return self._effort(node), nodes.index(node)

        while sorter.is_active():
            ready = sorted([*ready, *sorter.get_ready()], key=rank)
            order.append(ready.pop(0))
            sorter.done(order[-1])
        return order

    def _waits_for(self, node: Node) -> list[Node]:
        """Return what must exist first: models that learn together wait for each other's inputs."""
        if node.section == "signals":
            return self.reads(node)
        peers = self.peers(node.name)
        return [
            read
            for peer in peers
            for read in self.reads(Node("models", peer))
            if len(peers) == 1 or not self._is_between(read, peers)
        ]

    def _is_between(self, node: Node, peers: Sequence[str]) -> bool:
        """Whether a node is a live signal of one of the peers."""
        if node.section == "models" or not self._signals[node.name].is_live:
            return False
        return all(of in peers for of in self._signals[node.name].models)

    def _effort(self, node: Node) -> int:
        """Return 0 for sources, 2 for trainings, 1 for everything in between."""
        if node.section == "models" and self._models[node.name].learn is not None:
            return 2
        return int(bool(self.reads(node)))
